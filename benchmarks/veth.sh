#!/usr/bin/env bash
# Run a training script as if on two machines: two network namespaces at the ends of a cable (a veth pair), one rank in
# each, and each direction limited to RATE by itself.
#
#   OMP_NUM_THREADS=1 bash benchmarks/veth.sh 100mbit benchmarks/hook_step.py --link "cable, 100 Mbit each way"
#
# RATE is in tc's units (100mbit, 1gbit). Needs Linux, root, and ip and tc (Debian: apt-get install iproute2).
set -euo pipefail
PATH="$PWD/.venv/bin:$PATH"
[ $# -ge 2 ] || { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2; }
for tool in ip tc; do
  command -v "$tool" > /dev/null || { echo "error: $0 needs $tool (Debian: apt-get install iproute2)" >&2; exit 2; }
done
[ "$(id -u)" = 0 ] || { echo "error: $0 needs root, to make network namespaces" >&2; exit 2; }
rate=$1 one=end0-$$ other=end1-$$
shift
ip netns add "$one" && ip netns add "$other" || { echo "error: $0 may not make network namespaces here" >&2; exit 2; }
trap 'for s in "$one" "$other"; do ip netns pids "$s" | xargs -r kill 2> /dev/null; ip netns delete "$s"; done' EXIT
trap 'exit 130' INT TERM
ip link add veth0 netns "$one" type veth peer name veth1 netns "$other"
for number in 0 1; do
  space=end$number-$$
  ip -n "$space" addr add "10.77.0.$((number + 1))/24" dev "veth$number"
  ip -n "$space" link set "veth$number" up
  ip -n "$space" link set lo up
  ip netns exec "$space" tc qdisc add dev "veth$number" root tbf rate "$rate" burst 256kb latency 500ms
done
start() {
  GLOO_SOCKET_IFNAME=veth$1 NCCL_SOCKET_IFNAME=veth$1 ip netns exec "end$1-$$" "${PYTHON:-python}" \
    -m torch.distributed.run --nnodes 2 --nproc_per_node 1 --node_rank "$1" --master_addr 10.77.0.1 --master_port 29577 "${@:2}"
}
start 1 "$@" > /dev/null &
start 0 "$@"
wait
