// Threads that sleep until there is work and take it piece by piece, the caller among them: what a busy machine
// keeps from running is done by the others, and nobody spins.
#pragma once
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>

class Team {
 public:
  // Calls piece(0) ... piece(count - 1), on at most `threads` threads, and returns when all are done.
  void run(int threads, int count, const std::function<void(int)>& piece) {
    std::lock_guard<std::mutex> one_at_a_time(caller_);
    std::unique_lock<std::mutex> lock(mutex_);
    for (; helpers_ < threads - 1; ++helpers_) std::thread([this] { help(); }).detach();
    piece_ = &piece;
    next_ = 0;
    left_ = count_ = count;
    begun_.notify_all();
    while (next_ < count_) take(lock);
    done_.wait(lock, [this] { return left_ == 0; });
  }

 private:
  void help() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      begun_.wait(lock, [this] { return next_ < count_; });
      take(lock);
    }
  }

  void take(std::unique_lock<std::mutex>& lock) {
    const int i = next_++;
    const auto* piece = piece_;
    lock.unlock();
    (*piece)(i);
    lock.lock();
    if (--left_ == 0) done_.notify_one();
  }

  std::mutex caller_, mutex_;
  std::condition_variable begun_, done_;
  const std::function<void(int)>* piece_ = nullptr;
  int helpers_ = 0, next_ = 0, count_ = 0, left_ = 0;
};
