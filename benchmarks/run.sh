#!/usr/bin/env bash
# Run all benchmarks, or those that are named, and write their tables into docs/benchmarks/index.md.
#   bash benchmarks/run.sh
#   bash benchmarks/run.sh selection server_step
#   MNIST=data bash benchmarks/run.sh rounds    # with MNIST in data/, as in data.root; installs the peers into PEERS
# Names: selection server_step hook hook_1gbit hook_100mbit hook_cable rounds scale cohort; on a GPU selection_gpu and
# cohort_gpu instead of the last. scale_files, which fills 50 GB of disk, runs only if it is named. The links need Linux and
# root (benchmarks/link.sh). All take about twenty minutes on two idle cores.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
python=$(command -v python)
ranks="$python -m torch.distributed.run --standalone --nproc_per_node 2"
export OMP_NUM_THREADS=1 PYTHONPATH=$PWD
run() {
  case $1 in
    selection) $python benchmarks/selection.py ;;
    server_step) $python benchmarks/server_step.py ;;
    hook) $ranks benchmarks/hook_step.py ;;
    hook_1gbit) bash benchmarks/link.sh 1gbit $ranks benchmarks/hook_step.py --link "loopback, 1 Gbit" --target 5 --steps 1 ;;
    hook_100mbit)
      bash benchmarks/link.sh 100mbit $ranks benchmarks/hook_step.py --link "loopback, 100 Mbit" --target 40 --steps 1 --turns 5 ;;
    hook_cable)
      bash benchmarks/veth.sh 100mbit benchmarks/hook_step.py --link "cable, 100 Mbit each way" --target 1 --steps 1 --turns 5 ;;
    rounds) $python benchmarks/rounds.py "${MNIST:-data}" ${PEERS:+--peers "$PEERS"} ;;
    scale) $python benchmarks/scale.py ;;
    scale_files) $python benchmarks/scale.py --files ;;
    cohort | cohort_gpu) $python benchmarks/cohort.py ;;
    selection_gpu) $python benchmarks/selection_gpu.py ;;
    *) echo "error: there is no benchmark named $1" >&2 && exit 2 ;;
  esac
}
if [ $# -eq 0 ]; then
  set -- selection server_step hook hook_1gbit hook_100mbit hook_cable rounds scale
  command -v nvidia-smi > /dev/null && set -- "$@" selection_gpu cohort_gpu || set -- "$@" cohort
fi
failed=() printed=$(mktemp)
trap 'rm -f "$printed"' EXIT
for name in "$@"; do
  echo "== $name" >&2
  { run "$name" > "$printed" && $python benchmarks/report.py "$name" < "$printed"; } || failed+=("$name")
done
[ ${#failed[@]} -eq 0 ] || { echo "error: without a result: ${failed[*]}" >&2; exit 1; }
