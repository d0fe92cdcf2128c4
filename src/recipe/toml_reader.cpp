#include "recipe/toml_reader.h"

#include <toml++/toml.h>
#include <algorithm>
#include <sstream>

#include "core/error.h"

namespace polyspan {

struct TomlTable::Node {
  std::shared_ptr<const toml::table> root;  // keeps `table` alive
  const toml::table* table = nullptr;
};

namespace {

const toml::table kEmptyTable;

// Levenshtein's distance.
size_t edit_distance(const std::string& a, const std::string& b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replaced = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, replaced});
    }
  }
  return row[b.size()];
}

}  // namespace

std::string nearest_name(const std::string& name, const std::set<std::string>& known) {
  std::string best;
  size_t least = std::max<size_t>(3, name.size() / 2 + 1);
  for (const std::string& candidate : known)
    if (const size_t distance = edit_distance(name, candidate); distance < least) least = distance, best = candidate;
  return best;
}

TomlTable::TomlTable(std::shared_ptr<const Node> node, std::filesystem::path file, std::string name)
    : node_(std::move(node)), file_(std::move(file)), name_(std::move(name)) {}
TomlTable::~TomlTable() = default;

TomlTable TomlTable::parse(const std::string& text, const std::filesystem::path& name) {
  try {
    auto root = std::make_shared<const toml::table>(toml::parse(std::string_view(text)));
    const toml::table* table = root.get();
    return {std::make_shared<const Node>(Node{std::move(root), table}), name, ""};
  } catch (const toml::parse_error& error) {
    throw Error::bad_file(name, "line ", error.source().begin.line, ": ", error.description());
  }
}

std::string TomlTable::where(const char* key) const {
  std::ostringstream out;
  out << file_.string();
  if (const toml::node* node = node_->table->get(key)) out << ":" << node->source().begin.line;
  out << ": ";
  if (!name_.empty()) out << "[" << name_ << "] ";
  out << key;
  return out.str();
}

bool TomlTable::has(const char* key) const { return node_->table->contains(key); }

void TomlTable::read(const char* key, int64_t& value, int64_t least, int64_t most) {
  known_.insert(key);
  const toml::node* node = node_->table->get(key);
  if (node == nullptr) return;
  if (!node->is_integer()) throw Error::bad_input(where(key), " must be a whole number");
  value = node->as_integer()->get();
  if (value < least || value > most)
    throw Error::bad_input(where(key), " is ", value, "; it must be between ", least, " and ", most);
}

void TomlTable::read(const char* key, double& value, double least, double most) {
  known_.insert(key);
  const toml::node* node = node_->table->get(key);
  if (node == nullptr) return;
  if (!node->is_number()) throw Error::bad_input(where(key), " must be a number");
  value = *node->value<double>();
  if (!(value >= least && value <= most))
    throw Error::bad_input(where(key), " is ", value, "; it must be between ", least, " and ", most);
}

void TomlTable::read(const char* key, bool& value) {
  known_.insert(key);
  const toml::node* node = node_->table->get(key);
  if (node == nullptr) return;
  if (!node->is_boolean()) throw Error::bad_input(where(key), " must be true or false");
  value = node->as_boolean()->get();
}

void TomlTable::read(const char* key, std::string& value) {
  known_.insert(key);
  const toml::node* node = node_->table->get(key);
  if (node == nullptr) return;
  if (!node->is_string()) throw Error::bad_input(where(key), " must be a string");
  value = node->as_string()->get();
}

void TomlTable::read(const char* key, std::vector<int64_t>& value) {
  known_.insert(key);
  const toml::node* node = node_->table->get(key);
  if (node == nullptr) return;
  if (!node->is_array()) throw Error::bad_input(where(key), " must be an array of whole numbers");
  value.clear();
  for (const toml::node& element : *node->as_array()) {
    if (!element.is_integer()) throw Error::bad_input(where(key), " must be an array of whole numbers");
    value.push_back(element.as_integer()->get());
  }
}

void TomlTable::read(const char* key, std::vector<std::string>& value) {
  known_.insert(key);
  const toml::node* node = node_->table->get(key);
  if (node == nullptr) return;
  if (!node->is_array()) throw Error::bad_input(where(key), " must be an array of strings");
  value.clear();
  for (const toml::node& element : *node->as_array()) {
    if (!element.is_string()) throw Error::bad_input(where(key), " must be an array of strings");
    value.push_back(element.as_string()->get());
  }
}

TomlTable TomlTable::table(const char* key) {
  known_.insert(key);
  const toml::node* node = node_->table->get(key);
  if (node != nullptr && !node->is_table()) throw Error::bad_input(where(key), " must be a table, [", key, "]");
  const toml::table* table = node != nullptr ? node->as_table() : &kEmptyTable;
  return {std::make_shared<const Node>(Node{node_->root, table}), file_, key};
}

std::vector<TomlTable> TomlTable::tables(const char* key) {
  known_.insert(key);
  std::vector<TomlTable> tables;
  const toml::node* node = node_->table->get(key);
  if (node == nullptr) return tables;
  if (!node->is_array()) throw Error::bad_input(where(key), " must be an array of tables, [[", key, "]]");
  for (const toml::node& element : *node->as_array()) {
    if (!element.is_table()) throw Error::bad_input(where(key), " must be an array of tables, [[", key, "]]");
    std::string name = key;
    name.append(" ").append(std::to_string(tables.size() + 1));
    tables.push_back({std::make_shared<const Node>(Node{node_->root, element.as_table()}), file_, std::move(name)});
  }
  return tables;
}

void TomlTable::check_unknown() const {
  for (const auto& [key, node] : *node_->table) {
    const std::string name(key.str());
    if (known_.contains(name)) continue;
    const std::string nearest = nearest_name(name, known_);
    std::string all;
    for (const std::string& known : known_) all.append(all.empty() ? "" : ", ").append(known);
    if (nearest.empty()) throw Error::bad_input(where(name.c_str()), " is not known (known: ", all, ")");
    throw Error::bad_input(where(name.c_str()), " is not known; did you mean ", nearest, "?");
  }
}

}  // namespace polyspan
