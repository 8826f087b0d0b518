// Working memory of an operator.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

namespace headrace {

// Memory of the calling thread that only grows, aligned to 64 bytes; good until the thread's next call. An operator waits
// for its job, so that the job may point into it.
inline char* scratch(int64_t bytes) {
    struct Free {
        void operator()(char* p) const { ::operator delete[](p, std::align_val_t(64)); }
    };
    thread_local std::unique_ptr<char, Free> memory;
    thread_local int64_t size = 0;
    if (bytes > size) {
        memory.reset();
        size = 0;
        memory.reset(static_cast<char*>(::operator new[](size_t(bytes), std::align_val_t(64))));
        size = bytes;
    }
    return memory.get();
}

}  // namespace headrace
