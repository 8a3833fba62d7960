/*
 * Looks at a series of numbers: its mean, deviation, straight trend, and the period that is strongest in it. The numbers come in the input,
 * {"series": [1, 2.5, ...]}, or from a file of this package, {"dataset": "tides"}: data/tides.csv, a number at the end of each line.
 */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define INPUT_MAX (4 << 20)
#define VALUES_MAX 65536
#define NAME_MAX_LENGTH 64

static void fail(const char *format, ...) {
  va_list args;
  va_start(args, format);
  vfprintf(stderr, format, args);
  va_end(args);
  fputc('\n', stderr);
  exit(1);
}

/* The input: JSON, read once from its start. */

static char text[INPUT_MAX + 1];
static const char *at = text;

static void skip_space(void) { at += strspn(at, " \t\r\n"); }

static int take(char wanted) {
  skip_space();
  if (*at != wanted) return 0;
  at++;
  return 1;
}

static void expect(char wanted) {
  if (!take(wanted)) fail("The input is not the JSON that was expected: no %c at byte %ld.", wanted, (long)(at - text));
}

/* A string without escapes is kept, as far as there is room; of others nothing matters here. */
static void read_string(char *into, size_t size) {
  size_t length = 0;
  expect('"');
  while (*at != '"') {
    if (*at == '\0') fail("A text in the input does not end.");
    if (*at == '\\' && *++at == '\0') fail("A text in the input does not end.");
    if (length + 1 < size) into[length++] = *at;
    at++;
  }
  at++;
  if (size > 0) into[length] = '\0';
}

static double read_number(void) {
  char *end;
  skip_space();
  double value = strtod(at, &end);
  if (end == at || !isfinite(value)) fail("The input has no number at byte %ld.", (long)(at - text));
  at = end;
  return value;
}

static void skip_value(int depth) {
  if (depth > 100) fail("The input nests too deep.");
  skip_space();
  if (*at == '"') {
    read_string(NULL, 0);
  } else if (take('[')) {
    if (take(']')) return;
    do skip_value(depth + 1);
    while (take(','));
    expect(']');
  } else if (take('{')) {
    if (take('}')) return;
    do {
      read_string(NULL, 0);
      expect(':');
      skip_value(depth + 1);
    } while (take(','));
    expect('}');
  } else {
    size_t length = strspn(at, "+-.0123456789Eaeflnrstu");
    if (length == 0) fail("The input is not JSON at byte %ld.", (long)(at - text));
    at += length;
  }
}

/* The series. */

static double values[VALUES_MAX];
static size_t count = 0;

static void add(double value) {
  if (count == VALUES_MAX) fail("The series has more than %d numbers.", VALUES_MAX);
  values[count++] = value;
}

static void read_dataset(const char *name) {
  char path[NAME_MAX_LENGTH + 32];
  char line[256];
  snprintf(path, sizeof path, "/package/data/%s.csv", name);
  FILE *file = fopen(path, "r");
  if (file == NULL) fail("There is no dataset \"%s\" in this package.", name);
  while (fgets(line, sizeof line, file) != NULL) {
    char *end;
    char *last = strrchr(line, ',');
    const char *from = last == NULL ? line : last + 1;
    double value = strtod(from, &end);
    if (end != from) add(value);
  }
  fclose(file);
}

static void read_input(void) {
  char key[NAME_MAX_LENGTH], name[NAME_MAX_LENGTH] = "";
  size_t length = fread(text, 1, INPUT_MAX, stdin);
  if (length == INPUT_MAX) fail("The input is too large.");
  expect('{');
  if (take('}')) return;
  do {
    read_string(key, sizeof key);
    expect(':');
    if (strcmp(key, "series") == 0) {
      expect('[');
      if (!take(']')) {
        do add(read_number());
        while (take(','));
        expect(']');
      }
    } else if (strcmp(key, "dataset") == 0) {
      read_string(name, sizeof name);
    } else {
      skip_value(0);
    }
  } while (take(','));
  expect('}');
  if (name[0] != '\0') read_dataset(name);
}

/* Discrete Fourier transform in place; the size is a power of two. */
static void transform(double *re, double *im, size_t size) {
  for (size_t i = 1, j = 0; i < size; i++) {
    size_t bit = size >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) {
      double swap = re[i];
      re[i] = re[j], re[j] = swap;
      swap = im[i];
      im[i] = im[j], im[j] = swap;
    }
  }
  for (size_t length = 2; length <= size; length <<= 1) {
    double angle = -2 * M_PI / (double)length;
    for (size_t start = 0; start < size; start += length) {
      for (size_t k = 0; k < length / 2; k++) {
        double c = cos(angle * (double)k), s = sin(angle * (double)k);
        size_t a = start + k, b = a + length / 2;
        double r = re[b] * c - im[b] * s, i = re[b] * s + im[b] * c;
        re[b] = re[a] - r, im[b] = im[a] - i;
        re[a] += r, im[a] += i;
      }
    }
  }
}

/* The strongest period after the trend is taken out; 0 when there is none. */
static double period(double slope, double intercept) {
  size_t size = 1;
  while (size < 4 * count) size <<= 1;
  double *re = calloc(size, sizeof *re), *im = calloc(size, sizeof *im);
  if (re == NULL || im == NULL) fail("There is not enough memory for %zu numbers.", count);
  for (size_t i = 0; i < count; i++) {
    double window = 0.5 - 0.5 * cos(2 * M_PI * ((double)i + 0.5) / (double)count);
    re[i] = (values[i] - intercept - slope * (double)i) * window;
  }
  transform(re, im, size);
  /* Below four rounds in the whole series a period is not told from a curve. */
  size_t first = 4 * size / count, best = 0;
  double most = 1e-18;
  for (size_t k = first; k < size / 2; k++) {
    double power = re[k] * re[k] + im[k] * im[k];
    if (power > most) most = power, best = k;
  }
  free(re);
  free(im);
  return best == 0 ? 0 : (double)size / (double)best;
}

/* For what makes a component of this module: its memory comes from here, and not from behind the back of malloc. */
__attribute__((export_name("cabi_realloc"))) void *cabi_realloc(void *old, size_t old_size, size_t align, size_t size) {
  (void)old_size, (void)align;
  return realloc(old, size);
}

int main(void) {
  read_input();
  if (count < 2) fail("Give at least two numbers: {\"series\": [1, 2, 3]} or {\"dataset\": \"tides\"}.");

  double sum = 0, sum_of_products = 0, middle = ((double)count - 1) / 2, spread = 0;
  for (size_t i = 0; i < count; i++) sum += values[i];
  double mean = sum / (double)count, squares = 0;
  for (size_t i = 0; i < count; i++) {
    double x = (double)i - middle, y = values[i] - mean;
    squares += y * y;
    spread += x * x;
    sum_of_products += x * y;
  }
  double slope = sum_of_products / spread, intercept = mean - slope * middle;
  printf("{\"count\":%zu,\"mean\":%.6g,\"deviation\":%.6g,\"trend\":{\"slope\":%.6g,\"intercept\":%.6g},\"period\":", count, mean,
         sqrt(squares / (double)(count - 1)), slope, intercept);
  double strongest = count < 16 ? 0 : period(slope, intercept);
  if (strongest == 0) printf("null}\n");
  else printf("%.4g}\n", strongest);
  return 0;
}
