# Inside the bed: job.sh RUNNER STATE SECONDS BALLOON DIRECTORY...: the job with every device, of
# whose shares those directories are; what it left in them; and the balloon.
runner=$1 state=$2 seconds=$3 balloon=$4
shift 4
mkdir -p "$state" && cd "$state" && mkdir -p "$@" || exit 1
echo hello >shared/hello
echo before >shared/turn
echo before >moved/turn
echo mine >moved/given
chown 4000:5000 moved/given
chmod 777 moved
echo whisper >secret.txt
printf 'typed\ntwice\n' >input
: >said
(
    until grep -q '^turn' said; do sleep 1; done
    echo afterwards >shared/turn
    echo afterwards >moved/turn
    for process in /proc/[0-9]*; do
        [ "$(readlink "$process/cwd")" = "$state" ] || continue
        ls -l "$process/fd" | grep -q io_uring && echo "ring $(cat "$process/comm")"
    done
    until grep -q '^ready' said; do sleep 1; done
    [ "$balloon" = none ] || MICROVM_PROJECT=$state microvm-launch balloon "$runner" "$balloon"
) &
waiter=$!
here=$(dirname "$0")
python3 "$here/driver.py" "$runner" "$state" "$seconds" -- \
    sh -c "$(cat "$here/addresses.sh" "$here/inside.sh")" \
    <input 2>said
status=$?
kill $waiter 2>/dev/null
sed 's/^/said /' said
for file in shared/*; do echo "host ${file#shared/}"; done
for file in */owned moved/made; do
    [ -e "$file" ] && echo "kept $file $(stat -c '%u:%g %a' "$file")"
done
[ -d beside/.virtfs_metadata ] && sed 's/^/beside /' beside/.virtfs_metadata/owned
python3 -c '
import os, sys
for path in filter(os.path.exists, sys.argv[1:]):
    for name in os.listxattr(path):
        print("attribute", path, name, os.getxattr(path, name).hex())
' shared/secret mapped/owned
for tap in $(ls /sys/class/net); do echo "link $tap"; done
exit $status
