#include "moa/calibration_text.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <pugixml.hpp>
#include <vector>

#include "core/mapped_file.h"
#include "eval/natural_text.h"

namespace polyspan {
namespace {

constexpr size_t kLeastParagraph = 150;  // bytes
constexpr std::string_view kHandbook = "/usr/share/doc/debian-handbook/html/en-US";
constexpr std::string_view kSpaces = " \t\r\n\f\v";

bool is_paragraph(const pugi::xml_node& node) { return std::string_view(node.attribute("class").value()) == "para"; }

// The words of a paragraph, without those of what stands apart in it.
void append_text(const pugi::xml_node& node, std::string& text) {
  for (const pugi::xml_node& child : node.children()) {
    const std::string_view name = child.name();
    if (child.type() == pugi::node_pcdata || child.type() == pugi::node_cdata)
      text += child.value();
    else if (name != "pre" && name != "table" && name != "ul" && name != "ol" && name != "dl" && !is_paragraph(child))
      append_text(child, text);
  }
}

std::string single_spaced(std::string_view text) {
  std::string line;
  for (size_t at = 0; (at = text.find_first_not_of(kSpaces, at)) != text.npos;) {
    const size_t end = std::min(text.find_first_of(kSpaces, at), text.size());
    if (!line.empty()) line += ' ';
    line += text.substr(at, end - at);
    at = end;
  }
  return line;
}

enum class Part { kSpace, kWord, kNumber, kMark };

// Bytes of letters beyond ASCII are of words.
Part part_of(char c) {
  if (kSpaces.find(c) != kSpaces.npos) return Part::kSpace;
  if (c >= '0' && c <= '9') return Part::kNumber;
  const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || static_cast<unsigned char>(c) >= 0x80;
  return letter ? Part::kWord : Part::kMark;
}

struct Paragraphs : pugi::xml_tree_walker {
  std::string text;
  bool for_each(pugi::xml_node& node) override {
    if (!is_paragraph(node)) return true;
    std::string words;
    append_text(node, words);
    if (const std::string line = single_spaced(words); line.size() >= kLeastParagraph) text += line + "\n";
    return true;
  }
};

}  // namespace

std::string paragraphs_of(std::string_view xhtml) {
  pugi::xml_document document;
  if (!document.load_buffer(xhtml.data(), xhtml.size(), pugi::parse_default | pugi::parse_ws_pcdata)) return {};
  Paragraphs paragraphs;
  document.traverse(paragraphs);
  return std::move(paragraphs.text);
}

std::string words_apart(std::string_view text) {
  constexpr int64_t kRare = 3;
  std::vector<std::string_view> parts;
  std::map<std::string_view, int64_t> counts;
  for (size_t at = 0, end; at < text.size(); at = end) {
    end = at + 1;
    const auto same = [&, part = part_of(text[at])](char c) { return part != Part::kMark && part_of(c) == part; };
    while (end < text.size() && same(text[end])) ++end;
    parts.push_back(text.substr(at, end - at));
    ++counts[parts.back()];
  }
  std::string apart;
  for (const std::string_view part : parts) {
    const Part kind = part_of(part[0]);
    if (kind == Part::kSpace) {
      if (part.find('\n') != part.npos) apart += " \n";
      continue;
    }
    apart += ' ';
    apart += kind == Part::kWord && counts[part] < kRare ? std::string_view("<unk>") : part;
  }
  return apart;
}

std::optional<std::string> default_calibration_text() {
  std::vector<std::filesystem::path> pages;
  std::error_code missing;
  for (const auto& entry : std::filesystem::directory_iterator(kHandbook, missing))
    if (entry.path().extension() == ".html") pages.push_back(entry.path());
  std::sort(pages.begin(), pages.end());
  std::string text;
  for (const std::filesystem::path& page : pages) text += paragraphs_of(MappedFile(page).text());
  if (text.empty()) return default_natural_text();
  return text;
}

}  // namespace polyspan
