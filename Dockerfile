# The engine, Megatron-Core, Transformer Engine and Apex are the container's; only this package is added. In nvcr.io/nvidia/nemo
#   26.08 are Megatron-Bridge 0.6 and Megatron-Core 0.19 (what the extra `bridge` asks for),
#   25.11 are NeMo 2.6 and Megatron-Core 0.15 (what `train` asks for).
#   docker build -t nemo-probsft .
#   docker build -t nemo-probsft --build-arg BASE=nvcr.io/nvidia/nemo:25.11 .
#   docker run --gpus all --ipc=host -v $PWD/runs:/workspace/nemo-probsft/runs -v $PWD/data:/workspace/nemo-probsft/data nemo-probsft \
#     nemo-probsft train recipes/math/qwen2.5-math-1.5b.yaml
ARG BASE=nvcr.io/nvidia/nemo:26.08
FROM ${BASE}

WORKDIR /workspace/nemo-probsft
COPY . .
# `python3 -m pip`, since the newer containers have Bridge in a virtual environment on the PATH, and their `pip` installs outside of it.
RUN python3 -m pip install --no-cache-dir reasoning_gym==0.1.25 && python3 -m pip install --no-cache-dir --no-deps -e .

# vLLM wants its own torch and transformers, so evaluation gets an environment of its own.
RUN python3 -m venv /opt/eval && /opt/eval/bin/pip install --no-cache-dir "vllm>=0.14" "lm-eval==0.4.13" math-verify rapidfuzz \
    && /opt/eval/bin/pip install --no-cache-dir --no-deps -e .
ENV NEMO_PROBSFT_EVAL_PYTHON=/opt/eval/bin/python

CMD ["nemo-probsft", "--help"]
