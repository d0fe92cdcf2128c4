// core/folder_lock.h: one process at a time works on the run in a folder.
#pragma once

#include <filesystem>

namespace polyspan {

// Holds the lock of FOLDER/lock (flock(2)): it goes with the process, however that ends. The file stays.
class FolderLock {
 public:
  // REQUIRES: the folder is there. Throws Error: kIo; kBadInput where another process holds the lock.
  explicit FolderLock(const std::filesystem::path& folder);
  ~FolderLock();
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;

 private:
  int fd_ = -1;
};

}  // namespace polyspan
