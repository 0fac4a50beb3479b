# Inside the bed: outside.sh RUNNER STATE SECONDS: the runner's own start and shutdown, as units do.
runner=$1 state=$2 seconds=$3
mkdir -p "$state" && cd "$state" || exit 1
setsid microvm-launch run "$runner" <>/dev/null >console 2>&1 &
vmm=$!
tries=0
until grep -aq 'is up' console; do
    tries=$((tries + 1))
    [ $tries -lt "$seconds" ] && [ -d /proc/$vmm ] || { cat console; kill $vmm; exit 1; }
    sleep 1
done
for process in /proc/[0-9]*; do
    [ "$(readlink "$process/cwd")" = "$state" ] || continue
    echo "process $(tr '\0' ' ' <"$process/cmdline" | cut -c1-60)"
done
timeout "$seconds" microvm-launch shutdown "$runner"
wait $vmm
echo "ended $?"
