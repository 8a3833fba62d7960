#!/bin/sh
# Makes vmlinuz and initrd.gz: the kernel of Debian, and a first file system with busybox, the modules that the machine needs, and all that
# is in guest/. Nothing is installed, no script of a package runs, and no root is needed.
#
#   ./build.sh            fetches the two packages by apt, as this machine is configured
#   ./build.sh FOLDER     takes linux-image-*-amd64*.deb and busybox-static*.deb from FOLDER: no network is needed
set -eu
here=$(cd "$(dirname "$0")" && pwd)
packages=${1:-}
say() { printf '%s\n' "$*" >&2; }
need() { command -v "$1" >/dev/null || { say "$1 is missing. Install $2, or build on a machine with Debian or Ubuntu."; exit 1; }; }
need dpkg-deb dpkg
need gzip gzip
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if [ -z "$packages" ]; then
  need apt-get apt
  packages=$work/packages
  mkdir "$packages"
  cd "$packages"
  image=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
  [ -n "$image" ] || { say "apt knows no linux-image-cloud-amd64. Run apt-get update, or give a folder with the packages: ./build.sh FOLDER"; exit 1; }
  apt-get -q download "$image" busybox-static:amd64 >"$work/log" 2>&1 || {
    say "apt could not fetch $image and busybox-static: $(grep '^E:' "$work/log" | head -n 1)"
    say "Without a network, give a folder with both packages: ./build.sh FOLDER"
    exit 1
  }
fi
for name in linux-image busybox-static; do
  file=$(ls "$packages/$name"*.deb 2>/dev/null | head -n 1)
  [ -n "$file" ] || { say "$packages has no $name*.deb."; exit 1; }
  say "unpacking $(basename "$file")"
  dpkg-deb -x "$file" "$work/root"
done

kernel=$(ls "$work"/root/boot/vmlinuz-* | head -n 1)
modules=$work/root/lib/modules/${kernel##*/vmlinuz-}/kernel
initrd=$work/initrd
mkdir -p "$initrd/bin" "$initrd/modules"
cp "$(ls "$work"/root/bin/busybox "$work"/root/usr/bin/busybox 2>/dev/null | head -n 1)" "$initrd/bin/busybox"
cp -R "$here/guest/." "$initrd/"

# In this order: each needs those before it.
for name in virtio_ring virtio virtio_mmio virtio_console virtio_blk; do
  file=$(find "$modules" -name "$name.ko*" | head -n 1)
  [ -n "$file" ] || continue # part of the kernel itself
  case "$file" in
    *.xz) xz -dc "$file" >"$initrd/modules/$name.ko" ;;
    *.zst) zstd -qdc "$file" >"$initrd/modules/$name.ko" ;;
    *) cp "$file" "$initrd/modules/$name.ko" ;;
  esac
  echo "$name"
done >"$initrd/modules/order"

# A program of 248 bytes, for which there is no package. It reads 88 bytes from standard input: the line `wake 80`, seconds and
# nanoseconds, to which it sets the clock (clock_settime), and 64 random bytes, which it adds to the randomness of the
# kernel (RNDADDENTROPY) to be used at once (RNDRESEEDCRNG).
octal() { for byte in $1; do printf "\\$(printf %03o "0x$byte")"; done; }
{
  # ELF, 64 bits, x86-64, one segment at 0x400000 that is read, written and executed; it starts at 0x400078.
  octal '7f 45 4c 46 02 01 01 00 00 00 00 00 00 00 00 00 02 00 3e 00 01 00 00 00 78 00 40 00 00 00 00 00'
  octal '40 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 40 00 38 00 01 00 00 00 00 00 00 00'
  octal '01 00 00 00 07 00 00 00 00 00 00 00 00 00 00 00 00 00 40 00 00 00 00 00 00 00 40 00 00 00 00 00'
  octal 'f8 00 00 00 00 00 00 00 00 10 00 00 00 00 00 00 00 10 00 00 00 00 00 00'
  octal 'bb 00 02 40 00 31 ed 8d 74 2b 00 ba 58 00 00 00 29 ea 31 ff 31 c0 0f 05'
  octal '85 c0 7e 51 01 c5 83 fd 58 72 e4 48 8d 73 08 b8 e3 00 00 00 0f 05 48 8d'
  octal '3d 3f 00 00 00 be 01 00 00 00 b8 02 00 00 00 0f 05 89 c7 8d 53 10 c7 02'
  octal '00 02 00 00 c7 42 04 40 00 00 00 be 03 52 08 40 b8 10 00 00 00 0f 05 be'
  octal '07 52 00 00 b8 10 00 00 00 0f 05 31 ff b8 3c 00 00 00 0f 05 2f 64 65 76'
  octal '2f 72 61 6e 64 6f 6d 00'
} >"$initrd/bin/wake"
chmod 755 "$initrd/bin/wake"

find "$initrd" -exec touch -h -d @0 {} +
(cd "$initrd" && find . | LC_ALL=C sort | bin/busybox cpio -o -H newc -R 0:0 >"$work/initrd.cpio")
gzip -9nc "$work/initrd.cpio" >"$here/initrd.gz"
cp "$kernel" "$here/vmlinuz"
chmod 644 "$here/vmlinuz"
say "made $here/vmlinuz and $here/initrd.gz"
