# Finds a C++ compiler, ONNX Runtime's headers and Highway.
#
# Sets NA_DEPLOY_MISSING to a sentence that names the first one missing and what to do. It is empty if all are found;
# the targets onnxruntime_headers and highway then exist. Searched, in this order:
#   ONNXRUNTIME_INCLUDE_DIR and HIGHWAY_SOURCE_DIR, as CMake or environment variables;
#   build/native, where scripts/native_dependencies.sh puts them;
#   the system (Debian trixie and later: libonnxruntime-dev, libhwy-dev).
set(NA_DEPLOY_MISSING "")
set(NA_DEPLOY_FETCHED "${CMAKE_CURRENT_SOURCE_DIR}/build/native")
# Version 1.17 has the API that the adapter needs (KernelContext_ParallelFor); it is tested from 1.21 on.
set(NA_DEPLOY_MINIMUM_ORT_API 21)
set(NA_DEPLOY_MINIMUM_HIGHWAY 1.2.0)

function(_na_deploy_find)
  if(NA_DEPLOY_NATIVE STREQUAL "OFF")
    set(NA_DEPLOY_MISSING "NA_DEPLOY_NATIVE was OFF when na-deploy was installed" PARENT_SCOPE)
    return()
  endif()

  # ------------------------------------------------------------------ ONNX Runtime's headers
  if(NOT ONNXRUNTIME_INCLUDE_DIR AND DEFINED ENV{ONNXRUNTIME_INCLUDE_DIR})
    set(ONNXRUNTIME_INCLUDE_DIR "$ENV{ONNXRUNTIME_INCLUDE_DIR}")
  endif()
  if(ONNXRUNTIME_INCLUDE_DIR)
    set(headers "${ONNXRUNTIME_INCLUDE_DIR}")
  else()
    unset(NA_DEPLOY_ORT_HEADERS CACHE)
    find_path(NA_DEPLOY_ORT_HEADERS onnxruntime_cxx_api.h
      HINTS "${NA_DEPLOY_FETCHED}/onnxruntime"
      PATH_SUFFIXES onnxruntime onnxruntime/core/session)
    set(headers "${NA_DEPLOY_ORT_HEADERS}")
  endif()
  if(NOT EXISTS "${headers}/onnxruntime_cxx_api.h")
    if(ONNXRUNTIME_INCLUDE_DIR)
      set(message "ONNXRUNTIME_INCLUDE_DIR is ${headers}, which does not hold onnxruntime_cxx_api.h")
    else()
      set(message "ONNX Runtime's headers were not found; run scripts/native_dependencies.sh, install libonnxruntime-dev")
      string(APPEND message " or set ONNXRUNTIME_INCLUDE_DIR, and install na-deploy again")
    endif()
    set(NA_DEPLOY_MISSING "${message}" PARENT_SCOPE)
    return()
  endif()
  file(STRINGS "${headers}/onnxruntime_c_api.h" version REGEX "^#define ORT_API_VERSION [0-9]+")
  string(REGEX REPLACE "[^0-9]" "" version "${version}")
  if(version LESS NA_DEPLOY_MINIMUM_ORT_API)
    set(message "the ONNX Runtime headers in ${headers} are of version 1.${version}")
    set(NA_DEPLOY_MISSING "${message}; 1.${NA_DEPLOY_MINIMUM_ORT_API} or later is needed" PARENT_SCOPE)
    return()
  endif()

  # ------------------------------------------------------------------ Highway
  if(NOT HIGHWAY_SOURCE_DIR AND DEFINED ENV{HIGHWAY_SOURCE_DIR})
    set(HIGHWAY_SOURCE_DIR "$ENV{HIGHWAY_SOURCE_DIR}")
  endif()
  if(NOT HIGHWAY_SOURCE_DIR)
    set(HIGHWAY_SOURCE_DIR "${NA_DEPLOY_FETCHED}/highway")
  endif()
  set(from_source FALSE)
  if(EXISTS "${HIGHWAY_SOURCE_DIR}/hwy/highway.h")
    set(from_source TRUE)
  else()
    find_package(hwy ${NA_DEPLOY_MINIMUM_HIGHWAY} QUIET CONFIG)
    if(NOT hwy_FOUND)
      set(message "the SIMD library Highway (${NA_DEPLOY_MINIMUM_HIGHWAY} or later) was not found")
      string(APPEND message "; run scripts/native_dependencies.sh, install libhwy-dev or set HIGHWAY_SOURCE_DIR,")
      set(NA_DEPLOY_MISSING "${message} and install na-deploy again" PARENT_SCOPE)
      return()
    endif()
  endif()

  set(NA_DEPLOY_ORT_HEADERS_DIR "${headers}" PARENT_SCOPE)
  set(NA_DEPLOY_HIGHWAY_FROM_SOURCE "${from_source}" PARENT_SCOPE)
  set(NA_DEPLOY_HIGHWAY_DIR "${HIGHWAY_SOURCE_DIR}" PARENT_SCOPE)
endfunction()

# The compiler is found first: languages can be enabled at the top level only.
if(NOT NA_DEPLOY_NATIVE STREQUAL "OFF")
  if(NOT CMAKE_CXX_COMPILER)
    unset(CMAKE_CXX_COMPILER CACHE)  # search again after a failed search
  endif()
  include(CheckLanguage)
  check_language(CXX)
  if(CMAKE_CXX_COMPILER)
    enable_language(CXX)
  endif()
endif()
_na_deploy_find()
if(NOT NA_DEPLOY_MISSING AND NOT CMAKE_CXX_COMPILER)
  set(NA_DEPLOY_MISSING
    "there is no C++ compiler; install one (Debian, Ubuntu: apt install g++) and install na-deploy again")
endif()

if(NOT NA_DEPLOY_MISSING)
  message(STATUS "ONNX Runtime's headers: ${NA_DEPLOY_ORT_HEADERS_DIR}")
  add_library(onnxruntime_headers INTERFACE)
  target_include_directories(onnxruntime_headers SYSTEM INTERFACE "${NA_DEPLOY_ORT_HEADERS_DIR}")
  if(NA_DEPLOY_HIGHWAY_FROM_SOURCE)
    message(STATUS "Highway: ${NA_DEPLOY_HIGHWAY_DIR}")
    # Sources that the kernels' run-time dispatch needs, without Highway's tests and contributed code.
    add_library(highway STATIC
      "${NA_DEPLOY_HIGHWAY_DIR}/hwy/abort.cc"
      "${NA_DEPLOY_HIGHWAY_DIR}/hwy/aligned_allocator.cc"
      "${NA_DEPLOY_HIGHWAY_DIR}/hwy/per_target.cc"
      "${NA_DEPLOY_HIGHWAY_DIR}/hwy/targets.cc")
    target_compile_definitions(highway PUBLIC HWY_STATIC_DEFINE)
    target_compile_features(highway PUBLIC cxx_std_17)
    target_include_directories(highway SYSTEM PUBLIC "${NA_DEPLOY_HIGHWAY_DIR}")
  else()
    message(STATUS "Highway: ${hwy_DIR}")
    find_package(hwy ${NA_DEPLOY_MINIMUM_HIGHWAY} QUIET CONFIG REQUIRED)
    add_library(highway INTERFACE)
    target_link_libraries(highway INTERFACE hwy::hwy)
  endif()
endif()
