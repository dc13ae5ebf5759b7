# Finds oneTBB's headers and library, which the operators for OpenVINO are compiled against and OpenVINO brings along.
#
# Sets NA_DEPLOY_TBB_MISSING to a sentence where they are missing; it is empty if they are found, and the target
# na_deploy_tbb then exists. Searched, in this order:
#   TBB_ROOT, a folder with include/ and lib/ or libs/, as CMake or environment variable;
#   the OpenVINO that Python imports, whose wheel holds both;
#   build/native/tbb, where scripts/native_dependencies.sh puts Debian's;
#   the system (Debian, Ubuntu: libtbb-dev).
# Compiled against one release, the library runs with later ones.
set(NA_DEPLOY_TBB_MISSING "")

function(_na_deploy_find_tbb)
  if(NA_DEPLOY_OPENVINO STREQUAL "OFF")
    set(NA_DEPLOY_TBB_MISSING "NA_DEPLOY_OPENVINO was OFF when na-deploy was installed" PARENT_SCOPE)
    return()
  endif()
  if(NOT CMAKE_SYSTEM_NAME STREQUAL "Linux")
    set(NA_DEPLOY_TBB_MISSING "the operators for OpenVINO are compiled on Linux alone" PARENT_SCOPE)
    return()
  endif()
  if(NOT TBB_ROOT AND DEFINED ENV{TBB_ROOT})
    set(TBB_ROOT "$ENV{TBB_ROOT}")
  endif()
  set(roots "${TBB_ROOT}")
  if(NOT TBB_ROOT)
    find_package(Python COMPONENTS Interpreter QUIET)
    if(Python_EXECUTABLE)
      execute_process(
        COMMAND "${Python_EXECUTABLE}" -c
          "from importlib.util import find_spec as f; s = f('openvino'); print(s.submodule_search_locations[0] if s else '')"
        OUTPUT_VARIABLE openvino OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
      list(APPEND roots ${openvino})
    endif()
    list(APPEND roots "${CMAKE_CURRENT_SOURCE_DIR}/build/native/tbb")
  endif()
  unset(NA_DEPLOY_TBB_INCLUDE CACHE)
  unset(NA_DEPLOY_TBB_LIBRARY CACHE)
  set(system "")
  if(TBB_ROOT)
    set(system NO_DEFAULT_PATH)
  endif()
  find_path(NA_DEPLOY_TBB_INCLUDE tbb/parallel_for.h HINTS ${roots} PATH_SUFFIXES include ${system})
  find_library(NA_DEPLOY_TBB_LIBRARY NAMES libtbb.so.12 HINTS ${roots} PATH_SUFFIXES libs lib ${system})
  if(NA_DEPLOY_TBB_INCLUDE AND NA_DEPLOY_TBB_LIBRARY)
    return()
  endif()
  if(TBB_ROOT)
    set(message "TBB_ROOT is ${TBB_ROOT}, which does not hold include/tbb/parallel_for.h and lib/libtbb.so.12")
  else()
    set(message "oneTBB (libtbb.so.12 and its headers) was not found; run scripts/native_dependencies.sh, install")
    string(APPEND message " libtbb-dev or openvino, or set TBB_ROOT, and install na-deploy again")
  endif()
  set(NA_DEPLOY_TBB_MISSING "${message}" PARENT_SCOPE)
endfunction()

_na_deploy_find_tbb()
if(NOT NA_DEPLOY_TBB_MISSING)
  message(STATUS "oneTBB: ${NA_DEPLOY_TBB_LIBRARY}")
  add_library(na_deploy_tbb INTERFACE)
  target_include_directories(na_deploy_tbb SYSTEM INTERFACE "${NA_DEPLOY_TBB_INCLUDE}")
  target_link_libraries(na_deploy_tbb INTERFACE "${NA_DEPLOY_TBB_LIBRARY}")
endif()
