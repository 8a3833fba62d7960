import { isAlias, isMap, isNode, isScalar, LineCounter, type Node, type Pair, parseDocument, visit } from 'yaml';
import type { z } from 'zod';
import { utf8 } from '../base/bytes.ts';
import { HyperMeshError } from '../base/errors.ts';
import { MANIFEST_BYTES_MAX, MANIFEST_PARTS, type PackageManifest, packageManifest } from './manifest.ts';

/** How many problems one error names. A hostile file can have very many, and looking for one in the source takes a while. */
const PROBLEMS_MAX = 10;

interface Problem {
  readonly line: number;
  readonly column: number;
  /** For example `version: expected a semantic version, but got "abc"`. */
  readonly says: string;
  readonly hint?: string;
  /** A misspelt key is reported before the missing one that it causes. */
  readonly cause?: true;
}

/**
 * Parses and checks a `catalog.yaml`. YAML 1.2 core schema without anchors, aliases, merge keys and tags; every key known, none twice.
 * Errors: `manifest-invalid` with line and column of the first problem in the message, and up to ten of them in `details.problems`.
 */
export function parseManifest(yaml: string): PackageManifest {
  const size = yaml.length > MANIFEST_BYTES_MAX ? yaml.length : utf8(yaml).length;
  if (size > MANIFEST_BYTES_MAX) {
    throw new HyperMeshError(
      'manifest-invalid',
      `catalog.yaml: expected at most ${MANIFEST_BYTES_MAX} bytes, but got ${size} or more.`,
      { hint: 'Keep data in files of the package; catalog.yaml only describes it.' },
    );
  }
  const lines = new LineCounter();
  // Unique keys are checked below in linear time; the parser compares each with each.
  const document = parseDocument(yaml, {
    lineCounter: lines,
    prettyErrors: false,
    uniqueKeys: false,
    schema: 'core',
    logLevel: 'error',
  });
  const at = (offset: number | undefined) => {
    const { line, col } = lines.linePos(offset ?? 0);
    return { line: Math.max(line, 1), column: Math.max(col, 1) };
  };
  const tooDeep = document.errors.some((error) => error.code === 'RESOURCE_EXHAUSTION');
  if (tooDeep) throw manifestInvalid([{ ...at(0), says: 'is nested too deeply' }]);
  const broken = [...document.errors, ...document.warnings].map(
    (error): Problem => ({ ...at(error.pos[0]), says: `is not plain YAML: ${error.message.split('\n')[0]}` }),
  );
  if (broken.length > 0) throw manifestInvalid(broken);
  const unwanted = findUnwanted(document.contents, at);
  if (unwanted.length > 0) throw manifestInvalid(unwanted);

  const value: unknown = document.toJS({ maxAliasCount: 0 });
  if (value === null || typeof value !== 'object' || Array.isArray(value)) {
    throw manifestInvalid([
      {
        ...at(document.contents?.range?.[0]),
        says: `expected keys and values such as "name: ada/greeter", but got ${show(value)}`,
      },
    ]);
  }
  const parsed = packageManifest.safeParse(value);
  if (parsed.success) return parsed.data;
  throw manifestInvalid(
    parsed.error.issues.slice(0, PROBLEMS_MAX).flatMap((issue) => describe(issue, value, document.contents, at)),
  );
}

/** Anchors, aliases and tags, keys that are not text, keys that come twice. */
function findUnwanted(
  contents: Node | null,
  at: (offset: number | undefined) => { line: number; column: number },
): Problem[] {
  const problems: Problem[] = [];
  visit(contents, {
    Node(_, node) {
      const where = at(node.range?.[0]);
      if (isAlias(node) || ('anchor' in node && node.anchor !== undefined)) {
        problems.push({
          ...where,
          says: 'uses an anchor or alias, which are not allowed',
          hint: 'Write the value out.',
        });
      } else if (node.tag !== undefined) {
        problems.push({ ...where, says: `uses the tag ${show(node.tag)}; tags are not allowed`, hint: 'Remove it.' });
      }
      if (!isMap(node)) return;
      const seen = new Set<string>();
      for (const { key } of node.items) {
        const offset = isNode(key) ? key.range?.[0] : node.range?.[0];
        const name = isScalar(key) ? key.value : key;
        if (typeof name !== 'string') {
          problems.push({
            ...at(offset),
            says: `expected a key that is text, but got ${show(isScalar(key) ? key.value : 'a list or map')}`,
          });
        } else if (seen.has(name)) {
          problems.push({ ...at(offset), says: `has the key ${show(name)} twice`, hint: 'Keep one of them.' });
        } else {
          seen.add(name);
        }
      }
    },
  });
  return problems;
}

type Issue = z.core.$ZodIssue;

/** One zod issue in words: where, what was expected, what came, what to do. */
function describe(
  issue: Issue,
  value: unknown,
  contents: Node | null,
  at: (offset: number | undefined) => { line: number; column: number },
): Problem[] {
  const path = issue.path.map(String);
  const came = path.reduce<unknown>((inner, key) => (inner as Record<string, unknown> | undefined)?.[key], value);
  if (issue.code === 'unrecognized_keys') {
    const known = knownKeys(path);
    return issue.keys.slice(0, PROBLEMS_MAX).map((key) => {
      const near = nearest(key, known);
      return {
        ...at(locate(contents, [...path, key], 'key')),
        says: `${[...path, key].join('.').slice(0, 200)}: unknown key; expected one of ${known.join(', ')}`,
        cause: true as const,
        ...(near === null ? {} : { hint: `Did you mean \`${near}\`?` }),
      };
    });
  }
  const keyIssue = issue.code === 'invalid_key';
  const where = at(locate(contents, path, keyIssue ? 'key' : 'value'));
  const got = keyIssue ? show(path.at(-1)) : came === undefined ? 'nothing' : show(came);
  const hint = typeof came === 'number' && issue.code === 'invalid_type' ? 'Put it in quotes.' : undefined;
  return [
    {
      ...where,
      says: `${path.join('.').slice(0, 200)}: ${expectation(issue)}, but got ${got}`,
      ...(hint === undefined ? {} : { hint }),
    },
  ];
}

function expectation(issue: Issue): string {
  switch (issue.code) {
    case 'invalid_type':
      return `expected ${issue.expected === 'record' || issue.expected === 'object' ? 'keys and values' : issue.expected === 'array' ? 'a list' : `a ${issue.expected}`}`;
    case 'invalid_value':
      return `expected ${issue.values.map(String).join(', ')}`;
    case 'too_big':
      return `expected at most ${issue.maximum} ${unit(issue.origin)}`.trimEnd();
    case 'too_small':
      return `expected ${issue.inclusive === false ? 'more than' : 'at least'} ${issue.minimum} ${unit(issue.origin)}`.trimEnd();
    case 'invalid_union':
      return 'expected a number of bytes, or a size such as 512MiB';
    case 'invalid_key':
      return issue.issues[0]?.message ?? 'expected another key';
    case 'invalid_format':
      return issue.message.startsWith('expected')
        ? issue.message
        : issue.format === 'url'
          ? 'expected a URL with its scheme, for example "https://example.org"'
          : `expected the form ${'pattern' in issue ? issue.pattern : issue.format}`;
    case 'custom':
    case 'invalid_element':
    case 'not_multiple_of':
    case 'unrecognized_keys':
      return issue.message;
  }
}

function unit(origin: string): string {
  return origin === 'string' ? 'characters' : origin === 'array' ? 'items' : '';
}

/** The keys that the schema knows at a path. */
function knownKeys(path: readonly string[]): string[] {
  return Object.keys(MANIFEST_PARTS[path.join('.')]?.shape ?? {});
}

/** Where the key or the value of a path stands in the source; of its nearest ancestor when it is missing. */
function locate(contents: Node | null, path: readonly string[], what: 'key' | 'value'): number | undefined {
  let node: unknown = contents;
  let offset = contents?.range?.[0];
  for (const [depth, key] of path.entries()) {
    const pair: Pair | undefined = isMap(node)
      ? node.items.find((item) => isScalar(item.key) && item.key.value === key)
      : undefined;
    const next: unknown =
      pair !== undefined ? pair.value : (node as { items?: unknown[] } | null)?.items?.[Number(key)];
    if (isNode(pair?.key)) offset = pair.key.range?.[0] ?? offset;
    if (what === 'key' && depth === path.length - 1) return offset;
    if (!isNode(next)) return offset;
    offset = next.range?.[0] ?? offset;
    node = next;
  }
  return offset;
}

/** The known word at most two edits away, if any. */
function nearest(word: string, known: readonly string[]): string | null {
  if (word.length > 64) return null;
  const ranked = known
    .map((candidate) => ({ candidate, distance: editDistance(word.toLowerCase(), candidate.toLowerCase()) }))
    .sort((a, b) => a.distance - b.distance);
  return ranked[0] !== undefined && ranked[0].distance <= 2 ? ranked[0].candidate : null;
}

function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, i) => i);
  for (const [i, letter] of [...a].entries()) {
    const next = [i + 1];
    for (let j = 0; j < b.length; j++)
      next.push(Math.min(row[j + 1]! + 1, next[j]! + 1, row[j]! + (letter === b[j] ? 0 : 1)));
    row = next;
  }
  return row[b.length]!;
}

function show(value: unknown): string {
  const text = JSON.stringify(value) ?? String(value);
  return text.length > 80 ? `${text.slice(0, 80)}…` : text;
}

function manifestInvalid(problems: readonly Problem[]): HyperMeshError {
  const sorted = problems
    .toSorted((a, b) => a.line - b.line || a.column - b.column)
    .toSorted((a, b) => Number(b.cause ?? false) - Number(a.cause ?? false));
  const first = sorted[0]!;
  const more = sorted.length > 1 ? ` (and ${sorted.length - 1} more)` : '';
  return new HyperMeshError('manifest-invalid', `catalog.yaml:${first.line}:${first.column}: ${first.says}${more}.`, {
    hint: first.hint ?? 'Correct the line; docs/protocol/manifest.md describes every key.',
    details: {
      problems: sorted.slice(0, PROBLEMS_MAX).map(({ line, column, says }) => ({ line, column, says })),
    },
  });
}
