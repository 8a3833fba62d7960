import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join, normalize } from 'node:path';

/** The shape of the code as rules over its text. Each rule returns what is wrong, one line each; an empty list is a pass. */

/** Path from the project's root -> content. */
export type Sources = ReadonlyMap<string, string>;

/**
 * Which folder under `src/` may import from which. Type-only imports count. `subsystems/<name>` stands for each subsystem alone:
 * one never sees another. Documented in ARCHITECTURE.md.
 */
export const ARROWS: Readonly<Record<string, readonly string[]>> = {
  base: [],
  wire: ['base'],
  audit: ['wire', 'base'],
  capabilities: ['wire', 'base'],
  'subsystems/*': ['capabilities', 'wire', 'base'],
  catalog: ['capabilities', 'wire', 'base'],
  host: ['subsystems/*', 'capabilities', 'wire', 'base'],
  client: ['catalog/api.ts', 'capabilities', 'wire', 'base'],
  api: ['hypermesh.ts', 'catalog/api.ts', 'dashboard', 'host', 'capabilities', 'wire', 'base'],
  cli: [
    'client',
    'api',
    'config.ts',
    'main.ts',
    'daemon.ts',
    'hypermesh.ts',
    'audit',
    'catalog/api.ts',
    'capabilities',
    'wire',
    'base',
  ],
  dashboard: [],
  testing: ['hypermesh.ts', 'host', 'catalog', 'subsystems/*', 'capabilities', 'wire', 'base'],
  // the assembly, in order of who composes whom
  'config.ts': ['capabilities', 'wire', 'base'],
  'hypermesh.ts': ['audit', 'host', 'catalog', 'client', 'capabilities', 'wire', 'base'],
  'main.ts': ['audit', 'config.ts', 'hypermesh.ts', 'catalog/api.ts', 'api', 'wire', 'base'],
  'daemon.ts': ['config.ts', 'main.ts', 'log-file.ts', 'base'],
  'log-file.ts': ['base'],
  'index.ts': ['hypermesh.ts', 'catalog/api.ts', 'host', 'capabilities', 'wire', 'base'],
};

/** Only tests may import these. */
const TEST_ONLY = ['testing'];

export function readSources(root: string, folders: readonly string[]): Sources {
  const sources = new Map<string, string>();
  for (const folder of folders) {
    for (const entry of readdirSync(join(root, folder), { recursive: true, withFileTypes: true })) {
      if (!entry.isFile()) continue;
      const path = join(entry.parentPath, entry.name).slice(root.length + 1);
      if (/\.(ts|js|md|json|yaml|css|html|wat)$/.test(path)) sources.set(path, readFileSync(join(root, path), 'utf8'));
    }
  }
  return sources;
}

const isTest = (path: string) => /\.test\.ts$|^src\/testing\/|(^|\/)test-[a-z-]+\.ts$/.test(path);
const isCode = (path: string) => path.startsWith('src/') && path.endsWith('.ts') && !path.endsWith('.d.ts');

/** The modules of this project that a file imports or starts as a worker, as paths from the root. */
export function importsOf(path: string, source: string): string[] {
  const found: string[] = [];
  // Comments are blanked first, so that an example in one is not an arrow.
  const code = source.replace(/\/\*[\s\S]*?\*\//g, '').replace(/^\s*\/\/.*$/gm, '');
  for (const match of code.matchAll(/(?:\bfrom\s*|\bimport\s*\(?\s*)'(\.{1,2}\/[^']+|#src\/[^']+)'/g)) {
    const target = match[1]!;
    found.push(target.startsWith('#src/') ? target.slice(1) : normalize(join(dirname(path), target)));
  }
  for (const match of code.matchAll(/siblingModule\(\s*import\.meta\.url,\s*'([^']+)'/g)) {
    found.push(`${normalize(join(dirname(path), match[1]!))}.ts`);
  }
  return found;
}

/** `src/subsystems/vm/x.ts` -> `subsystems/vm`; `src/main.ts` -> `main.ts`; `src/wire/a.ts` -> `wire`. */
function areaOf(path: string): string {
  const [, first, second] = path.split('/');
  return first === 'subsystems' ? `subsystems/${second}` : first!;
}

export function brokenArrows(sources: Sources): string[] {
  const broken: string[] = [];
  for (const [path, source] of sources) {
    if (!isCode(path) || isTest(path)) continue;
    const from = areaOf(path);
    const rule = ARROWS[from.startsWith('subsystems/') ? 'subsystems/*' : from];
    if (rule === undefined) {
      broken.push(`${path}: src/${from} has no rule in test/tidy.ts`);
      continue;
    }
    for (const target of importsOf(path, source)) {
      if (!target.startsWith('src/')) {
        broken.push(`${path}: imports ${target} outside src/`);
        continue;
      }
      const to = areaOf(target);
      if (to === from && !TEST_ONLY.includes(to)) continue;
      const allowed = rule.some((area) =>
        area === 'subsystems/*' ? to.startsWith('subsystems/') : area === to || `src/${area}` === target,
      );
      if (!allowed) broken.push(`${path}: ${from} must not import ${target.slice(4)}`);
    }
  }
  return broken;
}

/** Cycles of imports that run at load time or exist only as types: neither is wanted. */
export function cycles(sources: Sources): string[] {
  const graph = new Map<string, string[]>();
  for (const [path, source] of sources) {
    if (isCode(path))
      graph.set(
        path,
        importsOf(path, source).filter((target) => sources.has(target)),
      );
  }
  const found: string[] = [];
  const done = new Set<string>();
  const trail: string[] = [];
  function visit(path: string): void {
    const at = trail.indexOf(path);
    if (at >= 0) {
      found.push([...trail.slice(at), path].join(' -> '));
      return;
    }
    if (done.has(path)) return;
    trail.push(path);
    for (const next of graph.get(path) ?? []) visit(next);
    trail.pop();
    done.add(path);
  }
  for (const path of graph.keys()) visit(path);
  return found;
}

/** Every error code is documented and somewhere used; every code that is used exists is the compiler's to check. */
export function errorRows(sources: Sources, codes: readonly string[]): string[] {
  const page = sources.get('docs/errors.md') ?? '';
  const code = [...sources].filter(([path]) => isCode(path) && path !== 'src/base/errors.ts' && !isTest(path));
  const base = (sources.get('src/base/errors.ts') ?? '').split('export type ErrorCode')[1] ?? '';
  const used = `${base}\n${code.map(([, source]) => source).join('\n')}`;
  return codes.flatMap((name) => [
    ...(page.includes(`\`${name}\``) ? [] : [`docs/errors.md does not document ${name}`]),
    ...(used.includes(`'${name}'`) ? [] : [`src/base/errors.ts: ${name} is never used`]),
  ]);
}

/** Every page in docs/protocol/ names the folder of its vectors, or says `Vectors: none, <why>`; every folder of vectors has its page. */
export function formatsWithoutVectors(sources: Sources): string[] {
  const wrong: string[] = [];
  const folders = new Set([...sources.keys()].flatMap((path) => /^test\/vectors\/[a-z0-9-]+/.exec(path) ?? []));
  const named = new Set<string>();
  for (const [path, source] of sources) {
    if (!path.startsWith('docs/protocol/') || !path.endsWith('.md')) continue;
    const names = source.match(/test\/vectors\/[a-z0-9-]+/g) ?? [];
    if (names.length === 0 && !/^Vectors: none, /m.test(source))
      wrong.push(`${path}: names no test/vectors/<name> and does not say why not`);
    for (const folder of names) {
      named.add(folder);
      if (!folders.has(folder)) wrong.push(`${path}: ${folder} holds no vectors`);
    }
  }
  for (const folder of folders) if (!named.has(folder)) wrong.push(`${folder}: no page in docs/protocol/ names it`);
  return wrong;
}

const BANNED: readonly (readonly [RegExp, string])[] = [
  [/\b(TODO|FIXME|XXX|HACK)\b(?!\(#\d+\))/, 'deferred work'],
  [/simplified for now|not implemented yet|placeholder implementation/i, 'unfinished work'],
  [/\bdescribe\.only\(|\btest\.only\(|\bit\.only\(|\btest\.skip\('/, 'a test that is left out'],
  [/^\s*@\w+.*\n\s*(export )?class /m, 'a decorator, which Node cannot strip'],
  [/\b(enum|namespace)\s+[A-Z]\w*\s*\{/, 'syntax that Node cannot strip'],
  [/console\.(log|debug|info|warn)\(/, 'console output (use the log, or the CLI output)'],
];

export function bannedText(sources: Sources): string[] {
  const wrong: string[] = [];
  for (const [path, source] of sources) {
    if (!isCode(path)) continue;
    for (const [pattern, what] of BANNED) {
      const match = pattern.exec(source);
      if (match) wrong.push(`${path}:${source.slice(0, match.index).split('\n').length}: ${what}`);
    }
  }
  return wrong;
}

/** Relative links in Markdown lead somewhere. */
export function deadLinks(sources: Sources, exists: (path: string) => boolean): string[] {
  const wrong: string[] = [];
  for (const [path, source] of sources) {
    if (!path.endsWith('.md')) continue;
    for (const [, target] of source
      .replace(/```[\s\S]*?```/g, '')
      .matchAll(/\]\((?!https?:|#|mailto:)([^)#\s]+)[^)]*\)/g)) {
      if (!exists(normalize(join(dirname(path), target!)))) wrong.push(`${path}: dead link ${target}`);
    }
  }
  return wrong;
}
