# Inside the bed: job.sh RUNNER STATE SECONDS BALLOON: the job with every device, and the balloon.
runner=$1 state=$2 seconds=$3 balloon=$4
mkdir -p "$state/shared" && cd "$state" || exit 1
echo hello >shared/hello
echo whisper >secret.txt
printf 'typed\ntwice\n' >input
: >said
(
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
for tap in $(ls /sys/class/net); do echo "link $tap"; done
exit $status
