import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { test } from 'node:test';
import fc from 'fast-check';
import { z } from 'zod';
import { type HyperMeshError, isCoded } from '../base/errors.ts';
import { canonicalJson, type Json } from '../base/json.ts';
import { MANIFEST_BYTES_MAX, manifestOfJson, packageManifest } from './manifest.ts';
import { parseManifest } from './manifest-text.ts';

const START = 'name: ada/greeter\nversion: 1.0.0\n';

function refusal(yaml: string): HyperMeshError {
  try {
    parseManifest(yaml);
  } catch (error) {
    assert.ok(isCoded(error, 'manifest-invalid'), String(error));
    return error;
  }
  throw new assert.AssertionError({ message: `accepted: ${yaml.slice(0, 200)}` });
}

function vectors<T>(name: string): readonly T[] {
  return JSON.parse(readFileSync(new URL(`../../test/vectors/manifest/${name}.json`, import.meta.url), 'utf8')) as T[];
}

test('valid vectors', () => {
  for (const { why, yaml, manifest } of vectors<{ why: string; yaml: string; manifest: Json }>('valid')) {
    assert.deepEqual(parseManifest(yaml), manifest, why);
    const json = canonicalJson(manifest);
    assert.deepEqual(parseManifest(json), manifest, `as JSON: ${why}`);
    assert.deepEqual(manifestOfJson(json), manifest, `without YAML: ${why}`);
    assert.equal(manifestOfJson(` ${json}`), undefined, why);
  }
});

test('what is not the canonical JSON of a manifest is left to the parser that says why', () => {
  for (const text of [
    '',
    '{',
    '{}',
    'name: ada/greeter',
    '{"name":"ada/greeter","name":"ada/greeter","version":"1.0.0"}',
    '{"version":"1.0.0","name":"ada/greeter"}',
    '{"__proto__":{},"name":"ada/greeter","version":"1.0.0"}',
    `{"name":${'['.repeat(100_000)}`,
    `{"description":"${'x'.repeat(MANIFEST_BYTES_MAX)}","name":"ada/greeter","version":"1.0.0"}`,
  ]) {
    assert.equal(manifestOfJson(text), undefined, text.slice(0, 100));
  }
});

test('invalid vectors: each names its line and column', () => {
  for (const { why, yaml, at } of vectors<{ why: string; yaml: string; at: string }>('invalid')) {
    const { message } = refusal(yaml);
    assert.ok(message.startsWith(`catalog.yaml:${at}: `), `${why}: ${message}`);
  }
});

test('messages say what was expected, what came, and what to do', () => {
  const cases: [string, string, string][] = [
    [`${START}desription: x\n`, '3:1: desription: unknown key; expected one of name,', 'Did you mean `description`?'],
    [
      `${START}resources: { memmory: 1 }\n`,
      '3:14: resources.memmory: unknown key; expected one of memory,',
      'Did you mean `memory`?',
    ],
    ['name: ada/x\nversion: 1.0\n', '2:10: version: expected a string, but got 1.', 'Put it in quotes.'],
    [`${START}keywords: x\n`, '3:11: keywords: expected a list, but got "x".', 'manifest.md'],
    [
      `${START}type: zip\n`,
      '3:7: type: expected library, package, template, container, virtual-machine, but got "zip".',
      '',
    ],
    [`${START}license: "${'x'.repeat(101)}"\n`, 'expected at most 100 characters', ''],
    [
      `${START}resources:\n  memory: 12 parsecs\n`,
      '4:11: resources.memory: expected a number of bytes, or a size such as 512MiB',
      '',
    ],
    [`${START}language: wasm\n`, '3:11: language: expected `entry` beside it', ''],
    [`${START}entry: x\n`, '3:8: entry: expected `language` beside it', ''],
    [
      `${START}peerDependencies:\n  ada/greeter: "*"\n`,
      '4:16: peerDependencies.ada/greeter: expected another package',
      '',
    ],
    ['nmae: a/b\n', '1:1: nmae: unknown key', 'Did you mean `name`?'],
  ];
  for (const [yaml, says, hint] of cases) {
    const error = refusal(yaml);
    assert.ok(error.message.includes(says), error.message);
    assert.ok(error.hint?.includes(hint), error.hint ?? 'no hint');
  }
  const many = refusal(Array.from({ length: 50 }, (_, i) => `key${i}: 1`).join('\n'));
  const { problems } = many.details as { problems: unknown[] };
  assert.equal(problems.length, 10);
});

test('bombs and floods are refused', () => {
  const laughs = ['a: &a [lol, lol, lol, lol, lol, lol, lol, lol, lol]'];
  for (let i = 1; i < 9; i++)
    laughs.push(
      `${'abcdefghi'[i]}: &${'abcdefghi'[i]} [${Array(9)
        .fill(`*${'abcdefghi'[i - 1]}`)
        .join(', ')}]`,
    );
  for (const [yaml, says] of [
    [laughs.join('\n'), 'anchor or alias'],
    ['x'.repeat(10_000_000), `at most ${MANIFEST_BYTES_MAX} bytes`],
    ['ä'.repeat(MANIFEST_BYTES_MAX / 2 + 1), `at most ${MANIFEST_BYTES_MAX} bytes`],
    ['['.repeat(100_000), 'nested too deeply'],
    ['{a: '.repeat(50_000), 'nested too deeply'],
    ['- '.repeat(100_000), 'nested too deeply'],
    [Array.from({ length: 20_000 }, (_, i) => `k${i}: 1`).join('\n'), 'unknown key'],
  ] as const) {
    const { message } = refusal(yaml);
    assert.ok(message.includes(says), `${says}: ${message.slice(0, 200)}`);
  }
});

test('any text gives a manifest or a coded error', () => {
  const fragments = fc.constantFrom(
    'name: ',
    'a/b',
    '\n',
    '  ',
    '- ',
    '{',
    '}',
    '[',
    ']',
    '"',
    "'",
    '&a ',
    '*a',
    '!t ',
    '? ',
    ': ',
    '|\n',
    '#',
    '---\n',
    'version: 1.0.0',
    '\t',
    '%YAML 1.1\n',
    '<<: ',
    '\u0000',
    '\ufeff',
    '__proto__: ',
    '1e999',
    'null',
    '~',
  );
  fc.assert(
    fc.property(fc.array(fc.oneof(fragments, fc.string({ maxLength: 5 })), { maxLength: 30 }), (parts) => {
      try {
        parseManifest(parts.join(''));
      } catch (error) {
        assert.ok(isCoded(error, 'manifest-invalid'), String(error));
        assert.match(error.message, /^catalog\.yaml:\d+:\d+: /);
      }
    }),
    { numRuns: 500 },
  );
});

test('the published JSON Schema is the one of the code (UPDATE_SCHEMA=1 writes it)', () => {
  const path = new URL('../../docs/protocol/manifest.schema.json', import.meta.url);
  const schema = z.toJSONSchema(packageManifest, { io: 'input' });
  const text = `${JSON.stringify({ ...schema, title: 'HyperMesh catalog.yaml' }, null, 2)}\n`;
  const { UPDATE_SCHEMA } = process.env;
  if (UPDATE_SCHEMA === '1') writeFileSync(path, text);
  assert.deepEqual(JSON.parse(readFileSync(path, 'utf8')), JSON.parse(text));
});
