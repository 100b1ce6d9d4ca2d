// cblas_?gemm for libmlx: forwarded to the OpenBLAS whose addresses Python stores in kssm_?gemm, the rows of
// the result, or its columns where there are more of them, in pieces for a team of threads. OpenBLAS's own
// threads spin while they wait, which on a machine that does anything else costs more than they bring.
// How a product is cut follows from its shape alone, so that the number of threads changes no bit of it.

#define GEMM(name, element, scalar)                                                                              \
  using name##_t = void (*)(int, int, int, int, int, int, scalar, const element*, int, const element*, int,      \
                            scalar, element*, int);                                                              \
  extern "C" {                                                                                                   \
  name##_t kssm_##name;                                                                                          \
  void cblas_##name(int order, int ta, int tb, int m, int n, int k, scalar alpha, const element* a, int lda,     \
                    const element* b, int ldb, scalar beta, element* c, int ldc) {                               \
    in_pieces(kssm_##name, order, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);                         \
  }                                                                                                              \
  }

extern "C" int kssm_threads;
int kssm_threads = 1;

// Multiplications that are not worth waking another thread for; and rows or columns of a piece.
static const double ALONE = 1 << 20;
static const int FEWEST = 128, MOST = 512, PIECES = 4, ROW_MAJOR = 101, AS_IT_IS = 111;

template <class Gemm, class Scalar, class Element>
static void in_pieces(Gemm gemm, int order, int ta, int tb, int m, int n, int k, Scalar alpha, const Element* a,
                      int lda, const Element* b, int ldb, Scalar beta, Element* c, int ldc) {
  const bool rows = m >= n;
  const int length = rows ? m : n, even = ((length + PIECES - 1) / PIECES + 15) / 16 * 16;
  const int size = even < FEWEST ? FEWEST : even > MOST ? MOST : even, count = (length + size - 1) / size;
  if (order != ROW_MAJOR || count < 2 || double(m) * n * k < ALONE)
    return gemm(order, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
  const auto piece = [&](int i) {
    const long first = long(i) * size, own = i + 1 < count ? size : length - first;
    if (rows)
      gemm(order, ta, tb, own, n, k, alpha, a + (ta == AS_IT_IS ? first * lda : first), lda, b, ldb, beta,
           c + first * ldc, ldc);
    else
      gemm(order, ta, tb, m, own, k, alpha, a, lda, b + (tb == AS_IT_IS ? first : first * ldb), ldb, beta,
           c + first, ldc);
  };
  // Never destroyed: its threads outlive the static objects of the process.
  static Team* team = new Team;
  team->run(kssm_threads, count, piece);
}

struct Complex {
  float re, im;
};

GEMM(sgemm, float, float)
GEMM(dgemm, double, double)
GEMM(cgemm, Complex, const void*)
