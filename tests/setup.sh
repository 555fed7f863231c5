#!/bin/sh
# Finds which system packages are missing, says so, and installs them. `make` calls it; it costs milliseconds when
# nothing is missing. PYTHON is the interpreter for the virtual environment, VENV its folder; GPU, when it is not empty,
# asks for what the tests build their software GPU with.
set -eu
PYTHON=${PYTHON:-python3}
VENV=${VENV:-.venv}
packages=

say() { printf 'setup: %s\n' "$*" >&2; }
die() { say "$@"; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }
VPL="libvpl-dev libvpl-tools"
lacks_vpl() {
  have ffmpeg && ffmpeg -hide_banner -buildconf 2>/dev/null | grep -q enable-libvpl &&
    ! { pkg-config --exists vpl && have vpl-inspect; }
}
need() { packages="${packages:+$packages }$1"; }

have ffmpeg && have ffprobe || need ffmpeg
have redis-server || need redis-server
have setpriv || need util-linux
if [ -n "${GPU-}" ]; then # the tests build a GPU in software
  have gcc && have pkg-config && have vainfo || need "gcc libc6-dev pkg-config vainfo"
  for library in libva libdrm libavcodec libavutil libswscale; do
    pkg-config --exists "$library" 2>/dev/null || need "$library-dev"
  done
  # which ffmpeg there will be is known when it is there
  lacks_vpl && need "$VPL"
fi
if [ ! -x "$VENV/bin/python" ]; then # one that exists was made by a Python that could
  have "$PYTHON" || die "there is no '$PYTHON'; install Python 3.11, 3.12 or 3.13, or name one: make PYTHON=python3.13 …"
  "$PYTHON" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' ||
    die "Python 3.11, 3.12 or 3.13 is needed and '$PYTHON' is $("$PYTHON" -V 2>&1); name another: make PYTHON=python3.13 …"
  "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null || # Debian keeps these two apart from Python
    need "$("$PYTHON" -c 'import sys
print("python3-venv" if sys.executable in ("/usr/bin/python3", "/bin/python3") else "python%d.%d-venv" % sys.version_info[:2])')"
fi
[ -n "$packages" ] || exit 0

have apt-get || die "missing: $packages (Debian's names). Install them with this system's package manager, then run make again."
if [ "$(id -u)" = 0 ]; then
  as_root() { "$@"; }
elif have sudo && { [ -t 0 ] || sudo -n true 2>/dev/null; }; then
  as_root() { sudo "$@"; }
else
  die "missing: $packages. Run this as root, then make again:  apt-get update && apt-get install $packages"
fi

# The tests and the demo start their own Redis, so the package shall not start one. Debian asks this file.
policy=/usr/sbin/policy-rc.d
log=$(mktemp)
placed=
clean_up() {
  rm -f "$log"
  [ -z "$placed" ] || as_root rm -f "$policy"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

install() {
  as_root apt-get update -qq &&
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"
}

say "installing with apt: $packages"
case " $packages " in
  *" redis-server "*)
    if [ ! -e "$policy" ]; then
      placed=yes
      printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
      as_root chmod 755 "$policy"
    fi ;;
esac
# shellcheck disable=SC2086 # the names are words
install $packages >"$log" 2>&1 </dev/null || { tail -n 20 "$log" >&2; die "apt could not install: $packages"; }
if [ -n "${GPU-}" ] && lacks_vpl; then
  # shellcheck disable=SC2086 # the names are words
  install $VPL >"$log" 2>&1 </dev/null || { tail -n 20 "$log" >&2; die "apt could not install: $VPL"; }
fi
