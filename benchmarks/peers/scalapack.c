/* ScaLAPACK on a process grid: factor a random matrix, check the answer, print one JSON line.
 *
 *     mpicc -O2 scalapack.c -o scalapack -lscalapack-openmpi -llapack -lblas -lm
 *     mpirun -n 2 ./scalapack lu|cholesky|r|qr|solve N BLOCK ROWS COLUMNS
 *
 * The entries of the matrix are a function of their row and column, so that it can be made again for the check.
 * lu: pdgetrf. cholesky: pdpotrf. r: pdgeqrf. qr: pdgeqrf and pdorgqr. solve: pdgetrf and pdgetrs.
 */
#include <math.h>
#include <mpi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void Cblacs_pinfo(int *, int *);
void Cblacs_get(int, int, int *);
void Cblacs_gridinit(int *, const char *, int, int);
void Cblacs_gridinfo(int, int *, int *, int *, int *);
void Cblacs_gridexit(int);
int numroc_(const int *, const int *, const int *, const int *, const int *);
void descinit_(int *, const int *, const int *, const int *, const int *, const int *, const int *, const int *, const int *, int *);
void pdgetrf_(const int *, const int *, double *, const int *, const int *, const int *, int *, int *);
void pdgetrs_(const char *, const int *, const int *, double *, const int *, const int *, const int *, int *, double *,
              const int *, const int *, const int *, int *);
void pdpotrf_(const char *, const int *, double *, const int *, const int *, const int *, int *);
void pdpotrs_(const char *, const int *, const int *, double *, const int *, const int *, const int *, double *, const int *,
              const int *, const int *, int *);
void pdgeqrf_(const int *, const int *, double *, const int *, const int *, const int *, double *, double *, const int *, int *);
void pdorgqr_(const int *, const int *, const int *, double *, const int *, const int *, const int *, double *, double *,
              const int *, int *);
void pdormqr_(const char *, const char *, const int *, const int *, const int *, double *, const int *, const int *, const int *,
              double *, double *, const int *, const int *, const int *, double *, const int *, int *);
void pdtrmv_(const char *, const char *, const char *, const int *, double *, const int *, const int *, const int *, double *,
             const int *, const int *, const int *, const int *);
void pdgemv_(const char *, const int *, const int *, const double *, double *, const int *, const int *, const int *, double *,
             const int *, const int *, const int *, const int *, const double *, double *, const int *, const int *, const int *,
             const int *);

static const int one = 1, zero = 0;
static int n, block, context, rows, columns, row, column, n_rows, n_columns, descriptor[9], vector[9], has_vector;

static double entry(int64_t i, int64_t j, int symmetric) {
  int64_t a = symmetric && j > i ? j : i, b = symmetric && j > i ? i : j;
  uint64_t x = (uint64_t)(a * 2000003 + b) * 0x9E3779B97F4A7C15ull; /* splitmix64 */
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  x ^= x >> 31;
  return (double)(x >> 11) * 0x1p-53 - 0.5 + (symmetric && i == j ? n : 0);
}

static int64_t place(int local, int coordinate, int count) {
  return ((int64_t)(local / block) * count + coordinate) * block + local % block;
}

static void fill(double *A, int symmetric) {
  for (int j = 0; j < n_columns; j++)
    for (int i = 0; i < n_rows; i++)
      A[(size_t)j * n_rows + i] = entry(place(i, row, rows), place(j, column, columns), symmetric);
}

static void fill_vector(double *v) {
  for (int i = 0; has_vector && i < n_rows; i++) v[i] = entry(place(i, row, rows), 1000003, 0);
}

/* y <- alpha op(A) x + beta y */
static void product(const char *op, double alpha, double *A, double *x, double beta, double *y) {
  pdgemv_(op, &n, &n, &alpha, A, &one, &one, descriptor, x, &one, &one, vector, &one, &beta, y, &one, &one, vector, &one);
}

static double norm(const double *v) {
  double square = 0, total;
  for (int i = 0; has_vector && i < n_rows; i++) square += v[i] * v[i];
  MPI_Allreduce(&square, &total, 1, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
  return sqrt(total);
}

static double frobenius(const double *A) {
  double square = 0, total;
  for (size_t i = 0; i < (size_t)n_rows * n_columns; i++) square += A[i] * A[i];
  MPI_Allreduce(&square, &total, 1, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
  return sqrt(total);
}

int main(int count, char **words) {
  MPI_Init(&count, &words);
  if (count != 6) {
    fprintf(stderr, "use: scalapack lu|cholesky|r|qr|solve N BLOCK ROWS COLUMNS\n");
    MPI_Abort(MPI_COMM_WORLD, 2);
  }
  const char *what = words[1];
  n = atoi(words[2]), block = atoi(words[3]), rows = atoi(words[4]), columns = atoi(words[5]);
  int me, n_ranks, info = 0;
  Cblacs_pinfo(&me, &n_ranks);
  Cblacs_get(-1, 0, &context);
  Cblacs_gridinit(&context, "Row", rows, columns);
  Cblacs_gridinfo(context, &rows, &columns, &row, &column);
  n_rows = numroc_(&n, &block, &row, &zero, &rows), n_columns = numroc_(&n, &block, &column, &zero, &columns);
  has_vector = column == 0;
  int leading = n_rows > 1 ? n_rows : 1;
  descinit_(descriptor, &n, &n, &block, &block, &zero, &zero, &context, &leading, &info);
  descinit_(vector, &n, &one, &block, &block, &zero, &zero, &context, &leading, &info);

  int is_cholesky = !strcmp(what, "cholesky"), is_q = !strcmp(what, "qr"), is_qr = is_q || !strcmp(what, "r");
  double *A = malloc(((size_t)n_rows * n_columns + 1) * sizeof(double));
  double *x = calloc(leading, sizeof(double)), *b = calloc(leading, sizeof(double)), *z = calloc(leading, sizeof(double));
  double *tau = calloc((size_t)n_columns + block, sizeof(double)), query[2], *work = query;
  int *pivots = malloc(sizeof(int) * (leading + (size_t)block)), ask = -1, n_work = 0;
  if (is_qr) {
    pdgeqrf_(&n, &n, A, &one, &one, descriptor, tau, query, &ask, &info);
    n_work = (int)query[0];
    pdorgqr_(&n, &n, &n, A, &one, &one, descriptor, tau, query, &ask, &info);
    n_work = n_work > (int)query[0] ? n_work : (int)query[0];
    pdormqr_("L", "N", &n, &one, &n, A, &one, &one, descriptor, tau, x, &one, &one, vector, query, &ask, &info);
    n_work = n_work > (int)query[0] ? n_work : (int)query[0];
    work = malloc(sizeof(double) * (size_t)n_work);
  }
  fill(A, is_cholesky);
  double size = frobenius(A), error = 0, orthogonality = 0;
  fill_vector(x);
  product("N", 1, A, x, 0, b); /* b = A x */

  MPI_Barrier(MPI_COMM_WORLD);
  double seconds = -MPI_Wtime();
  if (is_cholesky)
    pdpotrf_("L", &n, A, &one, &one, descriptor, &info);
  else if (is_qr)
    pdgeqrf_(&n, &n, A, &one, &one, descriptor, tau, work, &n_work, &info);
  else
    pdgetrf_(&n, &n, A, &one, &one, descriptor, pivots, &info);
  if (is_q) { /* R x, before Q takes its place, off the clock */
    seconds += MPI_Wtime();
    memcpy(z, x, sizeof(double) * leading);
    pdtrmv_("U", "N", "N", &n, A, &one, &one, descriptor, z, &one, &one, vector, &one);
    MPI_Barrier(MPI_COMM_WORLD);
    seconds -= MPI_Wtime();
    pdorgqr_(&n, &n, &n, A, &one, &one, descriptor, tau, work, &n_work, &info);
  }
  if (!strcmp(what, "solve")) {
    memcpy(z, b, sizeof(double) * leading);
    pdgetrs_("N", &n, &one, A, &one, &one, descriptor, pivots, z, &one, &one, vector, &info);
  }
  MPI_Barrier(MPI_COMM_WORLD);
  seconds += MPI_Wtime();

  if (is_q) {
    /* ||A x - Q (R x)|| and ||Q'(Q x) - x|| */
    double *y = calloc(leading, sizeof(double));
    product("N", 1, A, x, 0, y);
    product("T", 1, A, y, 0, tau = calloc(leading, sizeof(double)));
    for (int i = 0; has_vector && i < n_rows; i++) tau[i] -= x[i];
    orthogonality = norm(tau) / norm(x);
    product("N", -1, A, z, 1, b);
    error = norm(b) / (size * norm(x));
  } else if (is_qr) {
    memcpy(z, x, sizeof(double) * leading);
    pdtrmv_("U", "N", "N", &n, A, &one, &one, descriptor, z, &one, &one, vector, &one);
    pdormqr_("L", "N", &n, &one, &n, A, &one, &one, descriptor, tau, z, &one, &one, vector, work, &n_work, &info);
    for (int i = 0; has_vector && i < n_rows; i++) b[i] -= z[i];
    error = norm(b) / (size * norm(x));
  } else { /* the residual of a solve with the factors */
    if (strcmp(what, "solve")) {
      memcpy(z, b, sizeof(double) * leading);
      if (is_cholesky)
        pdpotrs_("L", &n, &one, A, &one, &one, descriptor, z, &one, &one, vector, &info);
      else
        pdgetrs_("N", &n, &one, A, &one, &one, descriptor, pivots, z, &one, &one, vector, &info);
    }
    fill(A, is_cholesky);
    product("N", -1, A, z, 1, b);
    error = norm(b) / (size * norm(z));
  }
  if (me == 0)
    printf("{\"seconds\": %.6f, \"backward_error\": %.6e, \"orthogonality\": %.6e, \"info\": %d}\n", seconds, error, orthogonality, info);
  Cblacs_gridexit(context);
  MPI_Finalize();
  return info != 0;
}
