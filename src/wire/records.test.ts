import assert from 'node:assert/strict';
import { suite, test } from 'node:test';
import fc from 'fast-check';
import { fromHex, fromUtf8, hex, utf8 } from '../base/bytes.ts';
import { isCoded } from '../base/errors.ts';
import { readVectors } from '../testing/vectors.ts';
import {
  decodeRecordsAnswer,
  decodeRecordsNews,
  decodeRecordsRequest,
  encodeRecordsAnswer,
  encodeRecordsNews,
  encodeRecordsRequest,
  RECORDS_ANSWER_BYTES_MAX,
  RECORDS_LIMITS,
  type RecordsNews,
  type RecordsRequest,
} from './records.ts';

interface Text {
  readonly why: string;
  readonly text: string;
}
interface Answer {
  readonly why: string;
  readonly asked: number;
  readonly bytes: string;
}

const valid = readVectors<{
  requests: (Text & { value: RecordsRequest })[];
  news: (Text & { value: RecordsNews })[];
  answers: (Answer & { records: (string | null)[] })[];
}>('records', 'valid');
const invalid = readVectors<{ requests: Text[]; news: Text[]; answers: Answer[] }>('records', 'invalid');

const refused = (work: () => unknown, why?: string) => assert.throws(work, (error) => isCoded(error, 'peer-lied'), why);

suite('messages about records', () => {
  test('are read and written as in the vectors', () => {
    for (const { why, text, value } of valid.requests) {
      assert.deepEqual(decodeRecordsRequest(utf8(text)), value, why);
      assert.equal(fromUtf8(encodeRecordsRequest(value)), text, why);
    }
    for (const { why, text, value } of valid.news) {
      assert.deepEqual(decodeRecordsNews(utf8(text)), value, why);
      assert.equal(fromUtf8(encodeRecordsNews(value)), text, why);
    }
    for (const { why, asked, bytes, records } of valid.answers) {
      const read = decodeRecordsAnswer(fromHex(bytes), asked);
      assert.deepEqual(
        read.map((record) => (record === null ? null : hex(record))),
        records,
        why,
      );
      assert.equal(hex(encodeRecordsAnswer(read)), bytes, why);
    }
  });

  test('are refused as in the vectors', () => {
    for (const { why, text } of invalid.requests) refused(() => decodeRecordsRequest(utf8(text)), why);
    for (const { why, text } of invalid.news) refused(() => decodeRecordsNews(utf8(text)), why);
    for (const { why, asked, bytes } of invalid.answers) refused(() => decodeRecordsAnswer(fromHex(bytes), asked), why);
  });

  test('records come back as they were handed over', () => {
    const record = fc.option(fc.uint8Array({ maxLength: 300 }));
    fc.assert(
      fc.property(fc.array(record, { minLength: 1, maxLength: 20 }), fc.nat(5), (records, more) => {
        const read = decodeRecordsAnswer(encodeRecordsAnswer(records), records.length + more);
        assert.deepEqual(
          read.map((one) => (one === null ? null : hex(one))),
          records.map((one) => (one === null ? null : hex(one))),
        );
      }),
    );
  });

  test('the largest question and the largest record fit the limits that are stated for them', () => {
    const ids = Array.from({ length: RECORDS_LIMITS.idsMax }, (_, at) => at.toString(16).padStart(64, '0'));
    const question = encodeRecordsRequest({ collection: 'c'.repeat(32), ids });
    assert.ok(question.length <= RECORDS_LIMITS.requestBytesMax, `${question.length}`);
    assert.equal(decodeRecordsRequest(question).ids.length, RECORDS_LIMITS.idsMax);
    const answer = encodeRecordsAnswer([new Uint8Array(RECORDS_LIMITS.recordBytesMax)]);
    assert.ok(answer.length <= RECORDS_ANSWER_BYTES_MAX);
    assert.equal(decodeRecordsAnswer(answer, 1)[0]!.length, RECORDS_LIMITS.recordBytesMax);
  });
});
