# The CUDA module _core_cuda, and the same kernels as host code for tests (tests/native/emulation).
#
# TRPO_FAST_CUDA: AUTO builds the module where nvcc is found and a device is present, for the devices
# of this machine alone; ON builds it anywhere, for every device from 8.0 on, and insists; OFF leaves
# it out.
# TRPO_FAST_CUDA_ARCHITECTURES: as CMake's CUDA_ARCHITECTURES, in place of what AUTO and ON choose;
# "90" is machine code and PTX, from which a driver compiles for anything newer.
set(TRPO_FAST_CUDA AUTO CACHE STRING "Build the CUDA kernels: AUTO (for the devices here), ON or OFF")
set(TRPO_FAST_CUDA_ARCHITECTURES "" CACHE STRING "Compute capabilities; empty: as TRPO_FAST_CUDA chooses")
set(every_cuda_architecture "80-real;90")
set(cuda_modes AUTO ON OFF)
if(NOT TRPO_FAST_CUDA IN_LIST cuda_modes)
  message(FATAL_ERROR "TRPO_FAST_CUDA is ${TRPO_FAST_CUDA}; use AUTO, ON or OFF")
endif()

set(cuda_host_sources csrc/cuda/plan.cpp)
set(cuda_device_sources
  csrc/cuda/device_info.cu
  csrc/cuda/gae.cu
  csrc/cuda/panels/policy_kernel_f32.cu
  csrc/cuda/panels/policy_kernel_f64.cu
  csrc/cuda/panels/policy_kernel_tensor_cores.cu
  csrc/cuda/tiles/tiled_kernel_f32.cu
  csrc/cuda/tiles/tiled_kernel_f64.cu)
set(cuda_register_sources
  csrc/python/register_cuda_device.cpp
  csrc/python/register_cuda_forward.cpp
  csrc/python/register_cuda_gae.cpp
  csrc/python/register_cuda_policy_problem.cpp)

# Sets `compiler`: whether there is an nvcc.
function(trpo_fast_find_nvcc)
  if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
    find_program(TRPO_FAST_NVCC nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda
      PATH_SUFFIXES bin)
    if(TRPO_FAST_NVCC)
      set(CMAKE_CUDA_COMPILER "${TRPO_FAST_NVCC}" CACHE FILEPATH "nvcc")
    endif()
  endif()
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    set(compiler ON PARENT_SCOPE)
  else()
    set(compiler OFF PARENT_SCOPE)
  endif()
endfunction()

# Sets `devices`: what to compile for the devices of this machine, empty where there is none.
function(trpo_fast_find_devices)
  set(found "")
  execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader
    OUTPUT_VARIABLE listed ERROR_QUIET RESULT_VARIABLE failed)
  if(NOT failed)
    string(REGEX MATCHALL "[0-9]+\\.[0-9]+" capabilities "${listed}")
    foreach(capability ${capabilities})
      string(REPLACE "." "" architecture "${capability}")
      list(APPEND found "${architecture}-real")
    endforeach()
    list(REMOVE_DUPLICATES found)
  endif()
  set(devices "${found}" PARENT_SCOPE)
endfunction()

# Sets `served`: those of the architectures that nvcc has and the kernels are written for.
function(trpo_fast_keep_served)
  execute_process(COMMAND "${CMAKE_CUDA_COMPILER}" --list-gpu-code OUTPUT_VARIABLE known ERROR_QUIET)
  set(found "")
  foreach(architecture ${ARGN})
    string(REPLACE "-real" "" number "${architecture}")
    if(number GREATER_EQUAL 75 AND known MATCHES "sm_${number}[^0-9a-z]")
      list(APPEND found "${architecture}")
    endif()
  endforeach()
  set(served "${found}" PARENT_SCOPE)
endfunction()

# Sets `architectures`: what to compile the module for; empty: it is left out.
function(trpo_fast_choose_architectures)
  set(architectures "" PARENT_SCOPE)
  set(rest "TRPO_FAST_CUDA=ON builds them for every device from 8.0 on (pip: -C cmake.define.TRPO_FAST_CUDA=ON)")
  if(TRPO_FAST_CUDA STREQUAL OFF)
    return()
  elseif(TRPO_FAST_CUDA STREQUAL AUTO)
    trpo_fast_find_devices()
    if(NOT devices)
      message(STATUS "CUDA kernels are left out: nvidia-smi finds no device here. ${rest}")
      return()
    endif()
  endif()
  trpo_fast_find_nvcc()
  if(NOT compiler)
    set(advice "no working nvcc was found: put CUDA's bin directory on PATH or set CUDACXX")
    if(TRPO_FAST_CUDA STREQUAL ON)
      message(FATAL_ERROR "TRPO_FAST_CUDA=ON, but ${advice}, or build with TRPO_FAST_CUDA=AUTO or OFF")
    endif()
    message(STATUS "CUDA kernels are left out: ${advice}")
  elseif(TRPO_FAST_CUDA_ARCHITECTURES)
    set(architectures "${TRPO_FAST_CUDA_ARCHITECTURES}" PARENT_SCOPE)
  elseif(TRPO_FAST_CUDA STREQUAL ON)
    set(architectures "${every_cuda_architecture}" PARENT_SCOPE)
  else()
    trpo_fast_keep_served(${devices})
    if(served)
      message(STATUS "CUDA kernels for the devices of this machine alone. ${rest}")
    else()
      message(STATUS "CUDA kernels are left out: ${CMAKE_CUDA_COMPILER} has no machine code for ${devices}. ${rest}")
    endif()
    set(architectures "${served}" PARENT_SCOPE)
  endif()
endfunction()

macro(trpo_fast_add_cuda)
  trpo_fast_choose_architectures()
  if(architectures)
    set(CMAKE_CUDA_ARCHITECTURES "${architectures}")
    set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
    set(CMAKE_CUDA_STANDARD 17)
    set(CMAKE_CUDA_STANDARD_REQUIRED ON)
    enable_language(CUDA)
    find_package(CUDAToolkit REQUIRED)
    message(STATUS "CUDA kernels: ${CMAKE_CUDA_COMPILER} for ${CMAKE_CUDA_ARCHITECTURES}")
    add_library(trpo_fast_cuda STATIC ${cuda_host_sources} ${cuda_device_sources})
    target_include_directories(trpo_fast_cuda PUBLIC csrc)
    target_compile_options(trpo_fast_cuda PRIVATE
      $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra>
      $<$<AND:$<COMPILE_LANGUAGE:CUDA>,$<BOOL:${TRPO_FAST_WERROR}>>:-Werror=all-warnings>)
    get_target_property(host_warnings trpo_fast_warnings INTERFACE_COMPILE_OPTIONS)
    target_compile_options(trpo_fast_cuda PRIVATE "$<$<COMPILE_LANGUAGE:CXX>:${host_warnings}>")
    if(NOT TRPO_FAST_CUDA_ONLY)
      pybind11_add_module(_core_cuda MODULE csrc/python/module_cuda.cpp ${cuda_register_sources})
      target_link_libraries(_core_cuda PRIVATE trpo_fast_cuda trpo_fast_warnings CUDA::cudart_static)
      list(JOIN architectures ", " named)
      set_source_files_properties(csrc/python/module_cuda.cpp PROPERTIES
        COMPILE_DEFINITIONS "TRPO_FAST_CUDA_ARCHITECTURES=\"${named}\"")
      install(TARGETS _core_cuda LIBRARY DESTINATION trpo_fast)
    endif()
  endif()
endmacro()

# trpo_fast_cuda_emulated: every kernel as C++.
function(trpo_fast_add_emulation)
  set_source_files_properties(${cuda_device_sources} PROPERTIES
    LANGUAGE CXX COMPILE_OPTIONS "-x;c++;-Wno-unknown-pragmas")
  add_library(trpo_fast_cuda_emulated STATIC
    ${cuda_host_sources} ${cuda_device_sources} tests/native/emulation/emulation.cpp)
  target_include_directories(trpo_fast_cuda_emulated PUBLIC csrc tests/native/emulation)
  target_link_libraries(trpo_fast_cuda_emulated PRIVATE trpo_fast_warnings)
  if(NOT TRPO_FAST_NATIVE_ONLY)
    find_package(Python 3.11 REQUIRED COMPONENTS Interpreter Development.Module)
    find_package(pybind11 CONFIG REQUIRED)
    pybind11_add_module(_core_cuda_emulated MODULE
      tests/native/emulation/module.cpp ${cuda_register_sources})
    target_link_libraries(_core_cuda_emulated PRIVATE trpo_fast_cuda_emulated trpo_fast_warnings)
  endif()
endfunction()
