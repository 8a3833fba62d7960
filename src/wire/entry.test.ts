import assert from 'node:assert/strict';
import { suite, test } from 'node:test';
import { base64, equal, fromBase64, fromUtf8, utf8 } from '../base/bytes.ts';
import { isCoded } from '../base/errors.ts';
import { canonicalJson, type Json } from '../base/json.ts';
import { signatureCheck } from '../testing/signer.ts';
import { patched, readVectors } from '../testing/vectors.ts';
import { attestationHolds, publicKeysOf } from './attestation.ts';
import type { Bundle } from './bundle.ts';
import {
  CLOCK_TYPE,
  decodeEntry,
  decodeInstruction,
  decodeOrder,
  ENTRY_LIMITS,
  type Entry,
  encodeEntry,
  encodeInstruction,
  encodeOrder,
  entryId,
  HANDOVER_TYPE,
  keyBytes,
  SEQUENCER_TYPE,
  type SelfSigned,
  SPACE_LOST_TYPE,
} from './entry.ts';
import { envelopeHolds } from './signature.ts';

const valid = readVectors<{ why: string; entry: Entry; id: string }[]>('entry', 'valid');
const invalid = readVectors<{
  entries: { why: string; of: string; patch: Json }[];
  instructions: { why: string; patch: Json }[];
}>('entry', 'invalid');

const refused = (read: () => unknown, why: string) =>
  assert.throws(read, (error) => isCoded(error, 'entry-invalid'), why);
const named = <K extends Entry['kind']>(why: string, kind: K) => {
  const { entry } = valid.find((one) => one.why === why)!;
  assert.equal(entry.kind, kind);
  return entry as Extract<Entry, { kind: K }>;
};

suite('entries', () => {
  test('are read and written as in the vectors', () => {
    for (const { why, entry, id } of valid) {
      const bytes = encodeEntry(entry);
      assert.deepEqual(decodeEntry(bytes), entry, why);
      assert.equal(entryId(bytes), id, why);
    }
    const [{ bundle }] = readVectors<[{ bundle: Bundle }]>('bundle', 'valid');
    const { formatVersion, networkId } = named('a clock', 'clock');
    const certified: Entry = { formatVersion, networkId, kind: 'certified', certificates: [bundle.endorsement] };
    assert.deepEqual(decodeEntry(encodeEntry(certified)), certified);
    refused(() => decodeEntry(encodeEntry({ ...certified, certificates: [] })), 'no certificate');
  });

  test('hold signatures of the keys that they name', () => {
    for (const { why, entry } of valid) {
      if (entry.kind !== 'instruction') continue;
      assert.ok(envelopeHolds(entry.signed.envelope, keyBytes(entry.signed.keys), signatureCheck), why);
      const instruction = decodeInstruction(entry.signed);
      assert.ok(equal(encodeInstruction(instruction), fromBase64(entry.signed.envelope.payload)), why);
    }
    const { document } = named('an epoch', 'epoch');
    const clock = named('a clock', 'clock');
    const handover = named('a handover', 'handover');
    const lost = named('a lost commitment', 'space-lost');
    const move = named('a move of the sequencer', 'sequencer');
    for (const [type, { statement }, attestation] of [
      [CLOCK_TYPE, clock, clock.attestation],
      [HANDOVER_TYPE, handover, handover.attestation],
      [SPACE_LOST_TYPE, lost, lost.attestations[0]!],
      [SEQUENCER_TYPE, move, move.attestations[0]!],
    ] as const) {
      const signer = document.validators.find(({ key }) => key === attestation.validator)!;
      assert.ok(attestationHolds(attestation, type, statement, publicKeysOf(signer), signatureCheck), type);
    }
    const { statement } = handover;
    const [order] = statement.orders as [SelfSigned];
    assert.ok(envelopeHolds(order.envelope, keyBytes(order.keys), signatureCheck));
    assert.ok(equal(encodeOrder(decodeOrder(order)), fromBase64(order.envelope.payload)));
  });

  test('are refused as in the vectors', () => {
    for (const { why, of, patch } of invalid.entries) {
      const { entry } = valid.find((one) => one.why === of)!;
      refused(() => decodeEntry(utf8(canonicalJson(patched(entry as unknown as Json, patch)))), why);
    }
    const { signed } = named('a claim of a name', 'instruction');
    const instruction = JSON.parse(fromUtf8(fromBase64(signed.envelope.payload))) as Json;
    const carrying = (value: Json) => ({
      ...signed,
      envelope: { ...signed.envelope, payload: base64(utf8(canonicalJson(value))) },
    });
    decodeInstruction(carrying(instruction));
    for (const { why, patch } of invalid.instructions) {
      refused(() => decodeInstruction(carrying(patched(instruction, patch))), why);
    }
    refused(() => decodeOrder(signed), 'an instruction is no order');
  });

  test('are refused in any form but the canonical one, and when they are too long', () => {
    const text = fromUtf8(encodeEntry(valid[0]!.entry));
    refused(() => decodeEntry(utf8(`${text} `)), 'a space at the end');
    refused(() => decodeEntry(utf8(text.slice(0, -1))), 'cut off');
    refused(() => decodeEntry(new Uint8Array(ENTRY_LIMITS.bytesMax + 1)), 'too long');
  });
});
