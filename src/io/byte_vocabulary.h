// io/byte_vocabulary.h: the letters that byte-level BPE vocabularies write bytes as.
#pragma once

#include <string>
#include <vector>

namespace polyspan {

// [256]: how GPT-2 writes each byte: printable Latin-1 stands for itself, the rest follows from U+0100 on. UTF-8.
std::vector<std::string> byte_letters();

}  // namespace polyspan
