import { randomBytes } from 'node:crypto';
import { hex, utf8 } from '../base/bytes.ts';
import { type Digest, digestOf } from '../base/digest.ts';
import { canonicalJson } from '../base/json.ts';
import {
  type Action,
  CLOCK_TYPE,
  type ClockStatement,
  type Entry,
  encodeInstruction,
  encodeOrder,
  HANDOVER_TYPE,
  type HandoverStatement,
  INSTRUCTION_TYPE,
  type Instruction,
  ORDER_TYPE,
  type SelfSigned,
} from '../wire/entry.ts';
import { byKey, type Committee, EPOCH_TYPE, type EpochDocument, type EpochProposal, type Seat } from '../wire/epoch.ts';
import { type Endorsement, type Operation, VOTE_TYPE } from '../wire/proof.ts';
import type { Signer } from './signer.ts';

/** Entries for the ordered log of one network, signed by those whom they name. */
export class EntryMaker {
  readonly networkId: Digest;
  /** Of the last instruction of each account. */
  readonly #numbers = new Map<string, number>();

  constructor(networkId: Digest = digestOf(randomBytes(32))) {
    this.networkId = networkId;
  }

  instruct(by: Signer, action: Action, number = (this.#numbers.get(by.keyId) ?? 0) + 1): Entry {
    this.#numbers.set(by.keyId, Math.max(number, this.#numbers.get(by.keyId) ?? 0));
    const payload: Instruction = { formatVersion: 1, networkId: this.networkId, account: by.keyId, number, action };
    const signed = { keys: by.keys, envelope: by.seal(INSTRUCTION_TYPE, encodeInstruction(payload)) };
    return { ...this.#head, kind: 'instruction', signed };
  }

  order(by: Signer, operation: Omit<Operation, 'identity'>): SelfSigned {
    const order = {
      formatVersion: 1,
      networkId: this.networkId,
      operation: { ...operation, identity: by.keyId },
    } as const;
    return { keys: by.keys, envelope: by.seal(ORDER_TYPE, encodeOrder(order)) };
  }

  /** Certificates of one committee, each with these votes. */
  certified(
    by: Signer,
    operations: readonly Omit<Operation, 'identity'>[],
    committee: Digest,
    voters: readonly Signer[],
  ): Entry {
    const certificates = operations.map((operation): Endorsement => {
      const admitted = { formatVersion: 3, networkId: this.networkId, committee, proofs: subject('proofs') } as const;
      const said = { ...admitted, operation: { ...operation, identity: by.keyId } };
      const votes = voters
        .map((voter) => ({ atMs: 5, attestation: voter.attest(VOTE_TYPE, { ...said, atMs: 5 }) }))
        .sort((a, b) => (a.attestation.validator < b.attestation.validator ? -1 : 1));
      return { ...said, votes };
    });
    return { ...this.#head, kind: 'certified', certificates };
  }

  /** What the publisher says twice under one number. */
  conflict(by: Signer, first: SelfSigned, second: SelfSigned): Entry {
    const conflict = { kind: 'orders', keys: by.keys, first: first.envelope, second: second.envelope } as const;
    return { ...this.#head, kind: 'evidence', conflict };
  }

  clock(by: Signer, atMs: number, committee: Digest = this.networkId): Entry {
    const statement: ClockStatement = { networkId: this.networkId, committee, validator: by.keyId, atMs };
    return { ...this.#head, kind: 'clock', statement, attestation: by.attest(CLOCK_TYPE, statement) };
  }

  epoch(before: Committee, validators: readonly Seat[], approvedBy: readonly Signer[]): Entry {
    const proposal: EpochProposal = {
      formatVersion: 1,
      networkId: this.networkId,
      epoch: before.epoch + 1,
      validators: byKey(validators),
      previous: before.digest,
    };
    const document: EpochDocument = {
      ...proposal,
      approvals: approvedBy
        .map((one) => one.attest(EPOCH_TYPE, proposal))
        .sort((a, b) => (a.validator < b.validator ? -1 : 1)),
    };
    return { ...this.#head, kind: 'epoch', document };
  }

  handover(
    by: Signer,
    committee: Digest,
    orders: readonly SelfSigned[] = [],
    { part = 0, isLast = true }: { readonly part?: number; readonly isLast?: boolean } = {},
  ): Entry {
    const statement: HandoverStatement = {
      networkId: this.networkId,
      committee,
      validator: by.keyId,
      part,
      isLast,
      orders,
    };
    return { ...this.#head, kind: 'handover', statement, attestation: by.attest(HANDOVER_TYPE, statement) };
  }

  get #head() {
    return { formatVersion: 1, networkId: this.networkId } as const;
  }
}

export function seatOf(validator: Signer, account: Signer): Seat {
  return { key: validator.keyId, ...validator.keys, account: account.keyId };
}

/** A manifest that differs for each text. */
export function subject(text: string): Digest {
  return digestOf(utf8(canonicalJson(text)));
}

export function someId(): string {
  return hex(randomBytes(32));
}
