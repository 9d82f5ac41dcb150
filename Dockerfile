# The project in an image, for CPU, or for GPUs by --build-arg=EXTRAS=[cuda12]: docs/recipes/docker.md
FROM python:3.12-slim

# As in the Makefile: page faults otherwise take a third of the time on CPU.
ENV GLIBC_TUNABLES=glibc.malloc.hugetlb=1 \
    MALLOC_MMAP_MAX_=0 \
    MALLOC_TRIM_THRESHOLD_=17179869184 \
    TRANSFORMERS_VERBOSITY=error

ARG EXTRAS=""
WORKDIR /app
COPY . .
RUN pip install --no-cache-dir --editable ".${EXTRAS}" \
    && useradd --create-home agent \
    && install --directory --owner=agent /app/runs
USER agent
ENTRYPOINT ["python", "-m"]
CMD ["experiments.doctor"]
