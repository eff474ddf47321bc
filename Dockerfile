# One image for the job and the service. KubeRay wants Ray, bash and wget in it: Ray's own image has them.
# Torch comes from pip's own index, and carries CUDA there (the node brings the driver). For a smaller image without GPUs:
# docker build --build-arg TORCH_INDEX=<an index of torch's CPU builds>
ARG RAY_VERSION=2.60.0
FROM rayproject/ray:${RAY_VERSION}-py311-cpu

ARG TORCH_INDEX=
# Made by the user ray, since WORKDIR alone may make it root's, and pip builds in it. Jobs start here: `python train.py`.
RUN mkdir -p /home/ray/app
WORKDIR /home/ray/app

# Torch by itself, before the rest: it is the big layer, and only it comes from TORCH_INDEX.
COPY --chown=1000:100 constraints.txt ./
RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"} "$(grep '^torch==' constraints.txt)"

COPY --chown=1000:100 pyproject.toml README.md LICENSE train.py ./
COPY --chown=1000:100 recsys recsys
COPY --chown=1000:100 cluster cluster
COPY --chown=1000:100 serve serve
RUN pip install --no-cache-dir --constraint constraints.txt .

# A number, not a name: only then can Kubernetes see that it is not root.
USER 1000:100
