# Adds the instruction sets emulated_amx and, beside the real ones, emulated_amx_avx512: the kernel of
# csrc/cpu/kernels/amx_product.inl on a model of its tiles.
set(emulation ${CMAKE_CURRENT_LIST_DIR})
set(emulation_flags ${kernel_optimization} -ffp-contract=fast -fno-math-errno -fno-trapping-math)
target_sources(trpo_fast_cpu PRIVATE ${emulation}/amx_model.cpp ${emulation}/emulated_amx.cpp)
target_compile_definitions(trpo_fast_cpu PRIVATE TRPO_FAST_EMULATED_AMX)
set_source_files_properties(${emulation}/emulated_amx.cpp PROPERTIES COMPILE_OPTIONS "${emulation_flags}")
# The model rounds where the manual says so.
set_source_files_properties(${emulation}/amx_model.cpp PROPERTIES
  COMPILE_OPTIONS "${kernel_optimization};-ffp-contract=off")
if(avx512_bf16 IN_LIST isas)
  target_sources(trpo_fast_cpu PRIVATE ${emulation}/emulated_amx_avx512.cpp)
  target_compile_definitions(trpo_fast_cpu PRIVATE TRPO_FAST_EMULATED_AMX_AVX512)
  set_source_files_properties(${emulation}/emulated_amx_avx512.cpp PROPERTIES
    COMPILE_OPTIONS "${emulation_flags};${flags_avx512_bf16}")
endif()
