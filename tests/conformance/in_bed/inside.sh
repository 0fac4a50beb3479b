# The job of a guest with every device: what it sees, one finding a line.
probe
# Bit 2 of what the balloon and its driver agreed on: it gives memory back (virtio 1.2, 5.5.3).
for place in /sys/bus/virtio/devices/*; do
    [ "$(cat "$place/device")" = 0x0005 ] && echo "gives $(cut -c3 "$place/features")"
done
echo "input $(cat | tr '\n' ' ')"
echo kept >/srv/data/kept && sync && echo "data $(cat /srv/data/kept)"
echo no 2>/dev/null >/srv/fixed/new && echo "fixed written" || echo "fixed refused"
for place in /srv/files /srv/locked /srv/nine /srv/closed; do
    [ -d "$place" ] || continue
    echo "${place##*/} read $(cat "$place/hello")"
    echo back 2>/dev/null >"$place/from-${place##*/}" && word=written || word=refused
    echo "${place##*/} $word"
done
# Owners: those that the guest gives, and those that are translated.
for place in /srv/nine /srv/passed /srv/mapped /srv/beside; do
    [ -d "$place" ] || continue
    echo mine >"$place/owned" && chown 1234:4321 "$place/owned" && chmod 640 "$place/owned"
    echo "owned ${place##*/} $(stat -c '%u:%g %a' "$place/owned")"
done
as() { setpriv --reuid "$1" --regid "$1" --clear-groups sh -c "$2" 2>/dev/null || echo refused; }
if [ -d /srv/acl ]; then
    echo "moved $(stat -c %u:%g /srv/moved/given) $(as 1002 'echo mine >/srv/moved/made && echo made')"
    # An access control list that lets user 1234 read (setxattr on x86-64: setfacl is not there).
    (umask 077 && echo told >/srv/acl/secret)
    echo "secret $(as 1234 'cat /srv/acl/secret')"
    perl -e '
        my $list = pack "V(vvV)5", 2, 1, 6, -1, 2, 4, 1234, 4, 0, -1, 16, 4, -1, 32, 0, -1;
        my ($path, $name) = ("/srv/acl/secret", "system.posix_acl_access");
        syscall(188, $path, $name, $list, length $list, 0) == 0 or print "setxattr $!\n";
    '
    echo "secret $(as 1234 'cat /srv/acl/secret')"
    # Without `posix_acl` the list says nothing.
    echo "secret $(as 1234 'cat /srv/files/secret')"
fi
# What the host changes at `turn`: by size, which the attributes say, and by content.
shares="files locked moved acl"
look() { [ -d "/srv/$1" ] && echo "$2 $1 $(stat -c %s "/srv/$1/turn") $(cat "/srv/$1/turn")"; }
for share in $shares; do
    look "$share" first
    look "$share" first  # what was read has changed what is known of it
done
echo turn >&2
tries=0
while [ -d /srv/acl ] && [ "$(cat /srv/acl/turn)" = before ] && [ $tries -lt 60 ]; do
    tries=$((tries + 1))
    sleep 1
done
[ -d /srv/acl ] && sleep 2  # what `auto` keeps is good for a second
for share in $shares; do look "$share" then; done
available() { set -- $(grep MemAvailable /proc/meminfo); echo "$2"; }
before=$(available) tries=0
echo ready >&2
while now=$(available) && [ $((before - now)) -lt 65536 ] && [ $tries -lt 120 ]; do
    tries=$((tries + 1))
    sleep 1
done
echo "balloon $before $now"
exit 7
