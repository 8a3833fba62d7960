import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import fc from 'fast-check';
import { wordHolds } from '../subsystems/trustchain/index.ts';
import {
  type Attestation,
  attestation,
  type FastAttestation,
  fastAttestation,
  type ValidatorKeys,
  validatorKeys,
} from './attestation.ts';

interface Vector {
  readonly name: string;
  readonly payloadType: string;
  readonly statement: unknown;
  readonly attestation: FastAttestation | Attestation;
  readonly keys: ValidatorKeys;
}
interface Invalid extends Partial<Omit<Vector, 'name'>> {
  readonly why: string;
  readonly of: number;
  /** Whether the form is right, and only the signatures are not. */
  readonly form: boolean;
}
const vectors = (kind: string) =>
  JSON.parse(readFileSync(new URL(`../../test/vectors/attestation/${kind}.json`, import.meta.url), 'utf8'));
const valid = vectors('valid') as readonly Vector[];
const schemaOf = (value: unknown) =>
  typeof value === 'object' && value !== null && !('falcon' in value) ? fastAttestation : attestation;

for (const { name, payloadType, statement, attestation: word, keys } of valid) {
  test(`an attestation holds: ${name}`, () => {
    assert.deepEqual(schemaOf(word).parse(word), word);
    assert.deepEqual(validatorKeys.parse(keys), keys);
    assert.equal(wordHolds(word, payloadType, statement, keys), true);
  });
}

for (const { why, of, form, ...change } of vectors('invalid') as readonly Invalid[]) {
  test(`an attestation is refused: ${why}`, () => {
    const { payloadType, statement, attestation: word, keys } = { ...valid[of]!, ...change };
    assert.equal(schemaOf(word).safeParse(word).success, form);
    if (form) assert.equal(wordHolds(word, payloadType, statement, keys), false);
  });
}

test('what held before says nothing about other keys, and comes back with the right ones', () => {
  const { payloadType, statement, attestation: word, keys } = valid[1]!;
  const others = (vectors('invalid') as readonly Invalid[]).find((one) => one.keys !== undefined)!.keys!;
  const mixed = [
    { ...keys, falcon: others.falcon },
    { ...keys, ed25519: others.ed25519 },
  ];
  for (const [by, holds] of [keys, ...mixed, keys].map((one) => [one, one === keys] as const))
    assert.equal(wordHolds(word, payloadType, statement, by), holds);
});

test('a seal that held says nothing about another statement', () => {
  const [sealed, other] = valid.filter(({ attestation: word }) => 'falcon' in word);
  const holds = ({ payloadType, statement, keys }: Vector, word: Vector['attestation']) =>
    wordHolds(word, payloadType, statement, keys);
  assert.ok(holds(sealed!, sealed!.attestation) && holds(other!, other!.attestation));
  assert.ok(!holds(other!, { ...other!.attestation, falcon: (sealed!.attestation as Attestation).falcon }));
});

test('the schemas answer any value, and no signature survives a changed byte', () => {
  const word = valid[1]!.attestation as Attestation;
  const members = Object.keys(word);
  fc.assert(
    fc.property(fc.constantFrom(...members), fc.jsonValue(), (member, value) => {
      const changed = { ...word, [member]: value };
      const parsed = attestation.safeParse(changed);
      if (parsed.success) wordHolds(parsed.data, valid[1]!.payloadType, valid[1]!.statement, valid[1]!.keys);
      fastAttestation.safeParse(value);
    }),
  );
  const { payloadType, statement, keys } = valid[1]!;
  fc.assert(
    fc.property(
      fc.constantFrom('ed25519', 'falcon'),
      fc.nat(1_279),
      fc.integer({ min: 1, max: 255 }),
      (part, at, by) => {
        const bytes = Buffer.from(word[part as 'falcon'], 'base64');
        bytes[at % bytes.length]! ^= by;
        assert.equal(wordHolds({ ...word, [part]: bytes.toString('base64') }, payloadType, statement, keys), false);
      },
    ),
    { numRuns: 50 },
  );
});
