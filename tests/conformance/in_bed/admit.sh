# Inside the bed: admit.sh LINK SECONDS: let a macvtap in mode source, once it is there, hear br0.
# Nothing else tells it whom it hears.
tries=0
until ip link set "$1" type macvtap macaddr add "$(cat /sys/class/net/br0/address)" 2>/dev/null; do
    tries=$((tries + 1))
    [ $tries -lt "$2" ] || exit 1
    sleep 1
done
