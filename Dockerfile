# NeMo 2.6.0, Megatron-Core 0.15, Transformer Engine and Apex are the container's; only this package is added.
#   docker build -t nemo-probsft .
#   docker run --gpus all --ipc=host -v $PWD/runs:/workspace/nemo-probsft/runs -v $PWD/data:/workspace/nemo-probsft/data nemo-probsft \
#     nemo-probsft train recipes/math/qwen2.5-math-1.5b.yaml
FROM nvcr.io/nvidia/nemo:25.11

WORKDIR /workspace/nemo-probsft
COPY . .
RUN pip install --no-cache-dir reasoning_gym==0.1.25 && pip install --no-cache-dir --no-deps -e .

# vLLM wants its own torch and transformers, so evaluation gets an environment of its own.
RUN python3 -m venv /opt/eval && /opt/eval/bin/pip install --no-cache-dir "vllm>=0.14" "lm-eval==0.4.13" math-verify rapidfuzz \
    && /opt/eval/bin/pip install --no-cache-dir --no-deps -e .
ENV NEMO_PROBSFT_EVAL_PYTHON=/opt/eval/bin/python

CMD ["nemo-probsft", "--help"]
