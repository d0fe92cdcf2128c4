# polyspan-random-model: models of known shapes with random weights. Included by bench/CMakeLists.txt.
add_executable(polyspan-random-model ${CMAKE_CURRENT_LIST_DIR}/random_model.cpp)
target_link_libraries(polyspan-random-model PRIVATE polyspan_io CLI11::CLI11)
polyspan_warnings(polyspan-random-model)
