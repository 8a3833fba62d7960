import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { promisify } from 'node:util';
import type { Json } from '../../../base/json.ts';
import { MemoryTrees, SMALL_POLICY } from '../../../testing/runtime-conformance.ts';
import { openExecution } from '../index.ts';

const run = promisify(execFile);

const RUST = `
use std::collections::BTreeMap;
use std::io::Read;
fn main() {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).unwrap();
    let mut counts = BTreeMap::new();
    for word in text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()) {
        *counts.entry(word.to_lowercase()).or_insert(0u32) += 1;
    }
    std::fs::write("/tmp/note", &text).unwrap();
    assert_eq!(std::fs::read_to_string("/tmp/note").unwrap(), text);
    eprintln!("{} words", counts.len());
    let members: Vec<String> = counts.iter().map(|(word, n)| format!("\\"{}\\":{}", word, n)).collect();
    println!("{{{}}}", members.join(","));
}`;

const C = `
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
struct word { char text[32]; int count; };
static int compare(const void *a, const void *b) { return strcmp(a, b); }
int main(void) {
  struct word *words = calloc(1000, sizeof *words);
  int used = 0, length = 0, c;
  char text[32];
  do {
    c = getchar();
    if (c != EOF && isalnum(c) && length < 31) { text[length++] = tolower(c); continue; }
    if (length == 0) continue;
    text[length] = 0; length = 0;
    int at = 0;
    while (at < used && strcmp(words[at].text, text)) at++;
    if (at == used) strcpy(words[used++].text, text);
    words[at].count++;
  } while (c != EOF);
  FILE *note = fopen("/tmp/note", "w");
  if (!note || fputs("x", note) < 0 || fclose(note)) return 1;
  qsort(words, used, sizeof *words, compare);
  fprintf(stderr, "%d words\\n", used);
  for (int at = 0; at < used; at++) printf("%s\\"%s\\":%d", at ? "," : "{", words[at].text, words[at].count);
  puts("}");
  return 0;
}`;

/** A command that makes `main.wasm` of a source, if it is here. */
interface Compiler {
  readonly source: string;
  readonly text: string;
  command(): Promise<readonly string[] | null>;
}

const COMPILERS: Readonly<Record<string, Compiler>> = {
  Rust: {
    source: 'main.rs',
    text: RUST,
    async command() {
      for (const rustc of ['rustc', '/usr/bin/rustc'])
        for (const target of ['wasm32-wasip1', 'wasm32-wasi']) {
          const found = await run(rustc, ['--print', 'target-libdir', '--target', target]).catch(() => null);
          if (found === null || !existsSync(found.stdout.trim())) continue;
          return [rustc, '--target', target, '-O', 'main.rs', '-o', 'main.wasm'];
        }
      return null;
    },
  },
  C: {
    source: 'main.c',
    text: C,
    async command() {
      if (!existsSync('/usr/include/wasm32-wasi/stdio.h')) return null;
      for (const clang of ['clang', 'clang-14', 'clang-19']) {
        const isThere = await run(clang, ['--version']).catch(() => null);
        if (isThere !== null) return [clang, '--target=wasm32-wasi', '-O2', 'main.c', '-o', 'main.wasm'];
      }
      return null;
    },
  },
};

describe('programs that real compilers make', () => {
  for (const [language, { source, text, command }] of Object.entries(COMPILERS)) {
    it(`of ${language} run: standard library, files, log and result`, async (t) => {
      const compiler = await command();
      if (compiler === null) return t.skip(`no compiler of ${language} for WASI is installed`);
      const folder = await mkdtemp(join(tmpdir(), 'hypermesh-compiled-'));
      t.after(() => rm(folder, { recursive: true, force: true }));
      await writeFile(join(folder, source), text);
      await run(compiler[0]!, compiler.slice(1), { cwd: folder });
      const trees = new MemoryTrees();
      await using execution = await openExecution({ assets: trees });
      const layer = trees.add({ 'main.wasm': await readFile(join(folder, 'main.wasm')) });
      const input: Json = { text: 'One two, two three THREE three' };
      const policy = { ...SMALL_POLICY, memoryBytes: 16 * 2 ** 20, tmpBytes: 2 ** 16 };
      const result = await execution.run({ kind: 'wasm', layer, entry: 'main.wasm', args: [], input, policy });
      assert.deepEqual([result.termination, result.exitCode, result.reason], ['exit', 0, null], result.stderr);
      assert.deepEqual(result.output, { one: 1, text: 1, three: 3, two: 2 });
      assert.equal(result.stderr, '4 words\n');
    });
  }
});
