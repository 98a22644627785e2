# Read by CMake inside llama-cpp-python's own project (envs/llama_cpp_build.py). That project switches
# on what llama.cpp's programs share: 53 of 127 files to compile, of which the libraries for Python
# use nothing. A plain variable stands above the cached one that it sets.
set(LLAMA_BUILD_COMMON OFF)
