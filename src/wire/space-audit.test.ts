import assert from 'node:assert/strict';
import { suite, test } from 'node:test';
import { fromUtf8, utf8 } from '../base/bytes.ts';
import type { Digest } from '../base/digest.ts';
import { isCoded } from '../base/errors.ts';
import { readVectors } from '../testing/vectors.ts';
import {
  auditAnswer,
  auditAsk,
  auditContext,
  decodeSpaceAudit,
  encodeSpaceAudit,
  lostAnswer,
  lostAsk,
} from './space-audit.ts';

const SCHEMAS = { auditAsk, auditAnswer, lostAsk, lostAnswer } as const;
interface Text {
  readonly why: string;
  readonly schema: keyof typeof SCHEMAS;
  readonly text: string;
}
interface Context {
  readonly networkId: Digest;
  readonly identity: string;
  readonly nonce: string;
  readonly context: Digest;
}

suite('messages about space', () => {
  test('are read and written as in the vectors', () => {
    const { contexts, messages } = readVectors<{ contexts: Context[]; messages: Text[] }>('space-audit', 'valid');
    for (const { why, schema, text } of messages) {
      assert.equal(fromUtf8(encodeSpaceAudit(decodeSpaceAudit<unknown>(SCHEMAS[schema], utf8(text)))), text, why);
    }
    assert.deepEqual([...new Set(messages.map(({ schema }) => schema))].sort(), Object.keys(SCHEMAS).sort());
    for (const { networkId, identity, nonce, context } of contexts) {
      assert.equal(auditContext(networkId, identity, nonce), context);
    }
  });

  test('are refused as in the vectors', () => {
    for (const { why, schema, text } of readVectors<Text[]>('space-audit', 'invalid')) {
      assert.throws(
        () => decodeSpaceAudit<unknown>(SCHEMAS[schema], utf8(text)),
        (error) => isCoded(error, 'peer-lied'),
        `${schema}: ${why}`,
      );
    }
  });
});
