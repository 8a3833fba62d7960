import assert from 'node:assert/strict';
import { suite, test } from 'node:test';
import { fromUtf8, utf8 } from '../base/bytes.ts';
import { type Digest, digestOf } from '../base/digest.ts';
import { isCoded } from '../base/errors.ts';
import { readVectors } from '../testing/vectors.ts';
import {
  ACCESS_LIMITS,
  type AccessChallenge,
  accessAsk,
  accessAsked,
  accessContext,
  accessGranted,
  accessOpened,
  accessProve,
  decodeAccess,
  encodeAccess,
  packageSet,
} from './access.ts';

const SCHEMAS = { accessAsk, accessAsked, accessOpened, accessProve, accessGranted } as const;
interface Text {
  readonly why: string;
  readonly schema: keyof typeof SCHEMAS;
  readonly text: string;
}

const { contexts, messages } = readVectors<{
  contexts: { readonly challenge: AccessChallenge; readonly context: Digest }[];
  messages: Text[];
}>('access', 'valid');

suite('messages about access', () => {
  test('are read and written as in the vectors', () => {
    for (const { why, schema, text } of messages) {
      assert.equal(fromUtf8(encodeAccess(decodeAccess<unknown>(SCHEMAS[schema], utf8(text)))), text, why);
    }
    assert.deepEqual([...new Set(messages.map(({ schema }) => schema))].sort(), Object.keys(SCHEMAS).sort());
    for (const { challenge, context } of contexts) assert.equal(accessContext(challenge), context);
  });

  test('are refused as in the vectors', () => {
    for (const { why, schema, text } of readVectors<Text[]>('access', 'invalid')) {
      assert.throws(
        () => decodeAccess<unknown>(SCHEMAS[schema], utf8(text)),
        (error) => isCoded(error, 'peer-lied'),
        `${schema}: ${why}`,
      );
    }
  });

  test('about as many packages as there may be fit their limits', () => {
    const ids = Array.from({ length: ACCESS_LIMITS.packagesMax }, (_, i) => digestOf(utf8(`${i}`)));
    const packages = packageSet([...ids, ...ids]);
    assert.equal(packages.length, ACCESS_LIMITS.packagesMax);
    assert.ok(encodeAccess({ use: 'execute', packages }).length <= ACCESS_LIMITS.askBytesMax);
    const challenge: AccessChallenge = { ...contexts[0]!.challenge, packages };
    const written = encodeAccess({ challenge });
    assert.deepEqual(decodeAccess(accessAsked, written), { challenge });
  });
});
