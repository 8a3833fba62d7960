import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { ERRORS } from '../src/base/errors.ts';
import {
  bannedText,
  brokenArrows,
  cycles,
  deadLinks,
  errorRows,
  formatsWithoutVectors,
  readSources,
  type Sources,
} from './tidy.ts';

const root = join(import.meta.dirname, '..');
const pages = ['README.md', 'ARCHITECTURE.md', 'PRINCIPLES.md', 'CHANGELOG.md'];
const sources: Sources = new Map([
  ...readSources(root, ['src', 'docs', 'test/vectors']),
  ...pages.map((page) => [page, readFileSync(join(root, page), 'utf8')] as const),
]);

/** The real tree with one file changed: a rule that does not see the change is not a rule. */
function planted(path: string, content: string): Sources {
  return new Map([...sources, [path, content]]);
}

function checks(
  rule: string,
  run: (sources: Sources) => string[],
  violation: { path: string; content: string; says: RegExp },
): void {
  test(`the tree obeys: ${rule}`, () => assert.deepEqual(run(sources), []));
  test(`a planted violation is seen: ${rule}`, () => {
    assert.match(run(planted(violation.path, violation.content)).join('\n'), violation.says);
  });
}

checks('the arrows between folders', brokenArrows, {
  path: 'src/catalog/planted.ts',
  content: "import type { HostNode } from '../host/node.ts';\n",
  says: /src\/catalog\/planted\.ts: catalog must not import host\/node\.ts/,
});

checks('a subsystem never sees another', brokenArrows, {
  path: 'src/subsystems/vm/planted.ts',
  content: "const trust = await import('../trustchain/index.ts');\n",
  says: /subsystems\/vm must not import subsystems\/trustchain\/index\.ts/,
});

checks('no cycles', (all) => cycles(all), {
  path: 'src/base/bytes.ts',
  content: "import { digestOf } from './digest.ts';\nimport type { Json } from './bytes.ts';\n",
  says: /src\/base\/bytes\.ts -> src\/base\/bytes\.ts/,
});

checks('every error code is documented and used', (all) => errorRows(all, Object.keys(ERRORS)), {
  path: 'docs/errors.md',
  content: '# Errors\n',
  says: /does not document manifest-invalid/,
});

checks('every format has a page and vectors', formatsWithoutVectors, {
  path: 'docs/protocol/planted.md',
  content: '# Planted\n\nVectors: test/vectors/planted/\n',
  says: /planted\.md: test\/vectors\/planted holds no vectors/,
});

checks('no unfinished, unstrippable or noisy code', bannedText, {
  path: 'src/base/planted.ts',
  content: '// TODO: later\n',
  says: /src\/base\/planted\.ts:1: deferred work/,
});

checks('links in the documentation lead somewhere', (all) => deadLinks(all, (path) => existsSync(join(root, path))), {
  path: 'docs/planted.md',
  content: '[gone](protocol/gone.md)\n',
  says: /dead link protocol\/gone\.md/,
});

test('the lock file is whole: every platform is in it, every pinned Node has its hash, no address is', () => {
  interface Locked {
    readonly version?: string;
    readonly integrity?: string;
    readonly resolved?: string;
    readonly optionalDependencies?: Readonly<Record<string, string>>;
  }
  const lock = JSON.parse(readFileSync(join(root, 'package-lock.json'), 'utf8')) as {
    packages: Record<string, Locked>;
  };
  // npm leaves out what its registry did not have at that moment; `npm ci` then refuses to run at all.
  for (const [path, { optionalDependencies = {} }] of Object.entries(lock.packages)) {
    for (const [name, version] of Object.entries(optionalDependencies)) {
      assert.equal(lock.packages[`node_modules/${name}`]?.version, version, `${name} of ${path || 'this package'}`);
    }
  }
  for (const name of Object.keys(lock.packages['']!.optionalDependencies!)) {
    assert.match(lock.packages[`node_modules/${name}`]!.integrity!, /^sha512-/, name);
  }
  assert.deepEqual(
    Object.entries(lock.packages).filter(([, entry]) => entry.resolved !== undefined),
    [],
  );
});
