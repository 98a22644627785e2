# Read by CMake inside llama-cpp-python's own project (envs/setup.py). It switches on what llama.cpp's
# programs share: over half of the compiling, and the library for Python uses nothing of it. A plain
# variable stands above the cached one that it sets.
set(LLAMA_BUILD_COMMON OFF)
