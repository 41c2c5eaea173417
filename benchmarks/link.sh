#!/usr/bin/env bash
# Run a command on a slow link: in a network namespace of its own, whose loopback device is limited to RATE.
#
#   bash benchmarks/link.sh 100mbit .venv/bin/torchrun --nproc_per_node 2 -m flare_dist train \
#       --config configs/quickstart.yaml --output_dir runs/slow_link
#
# All ranks take turns on that one device, as `flare-dist bandwidth --link 100Mbps/shared` assumes. RATE is in tc's units
# (100mbit, 1gbit). Needs Linux, root, and ip and tc (Debian: apt-get install iproute2).
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2; }
for tool in ip tc; do
  command -v "$tool" > /dev/null || { echo "error: $0 needs $tool (Debian: apt-get install iproute2)" >&2; exit 2; }
done
[ "$(id -u)" = 0 ] || { echo "error: $0 needs root, to make a network namespace" >&2; exit 2; }
rate=$1 space=link-$$
shift
ip netns add "$space" || { echo "error: $0 may not make a network namespace here" >&2; exit 2; }
trap 'ip netns pids "$space" | xargs -r kill 2> /dev/null; ip netns delete "$space"' EXIT
trap 'exit 130' INT TERM
ip -n "$space" link set lo up
# A token bucket holds a few of loopback's packets of up to 64 KiB; a packet that waits longer than the latency is dropped.
ip netns exec "$space" tc qdisc add dev lo root tbf rate "$rate" burst 256kb latency 500ms
GLOO_SOCKET_IFNAME=lo NCCL_SOCKET_IFNAME=lo ip netns exec "$space" "$@"
