#include "core/mapped_file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <iterator>
#include <string>

#include "core/atomic_file.h"
#include "core/error.h"

namespace polyspan {
namespace {
namespace fs = std::filesystem;

// A folder of its own for every test, removed afterwards.
class FileTest : public testing::Test {
 protected:
  FileTest() {
    std::string pattern = (fs::path(testing::TempDir()) / "polyspan-file-test-XXXXXX").string();
    folder_ = ::mkdtemp(pattern.data());
  }
  ~FileTest() override { fs::remove_all(folder_); }
  size_t n_entries() const { return static_cast<size_t>(std::distance(fs::directory_iterator(folder_), {})); }
  static std::string text_of(const fs::path& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  fs::path folder_;
};

std::string_view as_text(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// The message of the kIo error that `action` throws, "" when it throws none.
template <typename Action>
std::string io_error(Action action) {
  try {
    action();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kIo);
    return error.what();
  }
  return "";
}

using MappedFileTest = FileTest;
using AtomicFileTest = FileTest;

TEST_F(MappedFileTest, HoldsTheBytesOfAnyLength) {
  for (const size_t n_bytes : {0, 1, 4095, 4096, 4097, 100000}) {
    SCOPED_TRACE(n_bytes);
    std::string contents(n_bytes, 'x');
    for (size_t i = 0; i < n_bytes; ++i) contents[i] = static_cast<char>(i * 7);
    write_file_atomically(folder_ / "file", contents);
    const MappedFile file(folder_ / "file");
    EXPECT_EQ(as_text(file.bytes()), contents);
    EXPECT_EQ(file.path(), folder_ / "file");
  }
}

TEST_F(MappedFileTest, MovesAndReleases) {
  std::string contents(5 * 4096 + 17, 'a');
  contents.back() = 'z';
  write_file_atomically(folder_ / "file", contents);
  MappedFile first(folder_ / "file");
  const MappedFile file(std::move(first));
  EXPECT_TRUE(first.bytes().empty());  // NOLINT: what a moved-from file holds is part of the contract
  for (const size_t begin : {size_t{0}, size_t{1}, size_t{4096}, contents.size()})
    for (const size_t end : {begin, contents.size()}) {
      SCOPED_TRACE(testing::Message() << begin << " to " << end);
      file.release(file.bytes().subspan(begin, end - begin));
      EXPECT_EQ(as_text(file.bytes()), contents);  // read again from the file
    }
}

TEST_F(MappedFileTest, BytesInMemoryAreKeptByRelease) {
  const std::string contents(3 * 4096, 'm');
  const MappedFile file = MappedFile::of_memory(std::as_bytes(std::span(contents)), "name");
  file.release(file.bytes());
  EXPECT_EQ(contents, std::string(3 * 4096, 'm'));  // whole pages of it would be zero
  EXPECT_EQ(as_text(file.bytes()), contents);
  EXPECT_EQ(file.path(), "name");
}

TEST_F(MappedFileTest, RefusesWhatIsNoFile) {
  ASSERT_EQ(::mkfifo((folder_ / "pipe").c_str(), 0600), 0);
  const std::string missing = io_error([&] { MappedFile file(folder_ / "missing"); });
  EXPECT_EQ(missing, (folder_ / "missing").string() + ": cannot open: No such file or directory");
  EXPECT_NE(io_error([&] { MappedFile file(folder_); }).find("found a directory, wanted a file"), std::string::npos);
  EXPECT_NE(io_error([&] { MappedFile file(folder_ / "pipe"); }).find("no regular file"), std::string::npos);
}

TEST_F(AtomicFileTest, ReplacesAndLeavesNothingBeside) {
  write_file_atomically(folder_ / "file", "old and longer");
  write_file_atomically(folder_ / "file", "new");
  EXPECT_EQ(text_of(folder_ / "file"), "new");
  EXPECT_EQ(n_entries(), 1u);
}

TEST_F(AtomicFileTest, WithoutCommitTheOldFileStays) {
  write_file_atomically(folder_ / "file", "old");
  {
    AtomicFile file(folder_ / "file");
    file.append(std::as_bytes(std::span(std::string_view("half"))));
    EXPECT_EQ(text_of(folder_ / "file"), "old");
    EXPECT_EQ(n_entries(), 2u);
  }
  EXPECT_EQ(text_of(folder_ / "file"), "old");
  EXPECT_EQ(n_entries(), 1u);
}

TEST_F(AtomicFileTest, FollowsLinks) {
  fs::create_directory(folder_ / "real");
  write_file_atomically(folder_ / "real" / "file", "old");
  fs::create_symlink("real/file", folder_ / "link");
  fs::create_symlink("real/none", folder_ / "dangling");
  write_file_atomically(folder_ / "link", "new");
  write_file_atomically(folder_ / "dangling", "fresh");
  EXPECT_TRUE(fs::is_symlink(folder_ / "link"));
  EXPECT_EQ(text_of(folder_ / "real" / "file"), "new");
  EXPECT_EQ(text_of(folder_ / "real" / "none"), "fresh");
  fs::create_symlink("circle", folder_ / "circle");
  const std::string message = io_error([&] { write_file_atomically(folder_ / "circle", "x"); });
  EXPECT_NE(message.find("cannot follow the symbolic link"), std::string::npos) << message;
}

// A pipe in the test's own folder stands for every device: with the check broken, a real one would be replaced.
TEST_F(AtomicFileTest, RefusesFoldersAndDevices) {
  fs::create_directory(folder_ / "folder");
  ASSERT_EQ(::mkfifo((folder_ / "pipe").c_str(), 0600), 0);
  const auto message = [](const fs::path& path) { return io_error([&] { write_file_atomically(path, "x"); }); };
  EXPECT_NE(message(folder_ / "folder").find("found a directory"), std::string::npos);
  EXPECT_NE(message(folder_ / "pipe").find("no regular file"), std::string::npos);
  EXPECT_NE(message(folder_ / "none" / "file").find("cannot create"), std::string::npos);
  EXPECT_EQ(n_entries(), 2u);
}

}  // namespace
}  // namespace polyspan
