import { isIP } from 'node:net';
import { z } from 'zod';
import { utf8 } from '../base/bytes.ts';
import type { Digest } from '../base/digest.ts';
import { HyperMeshError } from '../base/errors.ts';
import { canonicalJson } from '../base/json.ts';
import { digest, hex32 } from './fields.ts';
import type { CertificateChain, Envelope } from './signature.ts';
import { decodeSigned, decodeSignedPayload } from './signed.ts';

/** DSSE payload type of a node record. */
export const NODE_RECORD_TYPE = 'application/vnd.hypermesh.node-record.v1+json';

export const NODE_RECORD_LIMITS = {
  recordBytesMax: 64 * 2 ** 10,
  addressesMax: 8,
  /** A node record is good for at most a week. */
  lifeMsMax: 7 * 86_400_000,
} as const;

/** Where a node can be reached, in its own words (docs/protocol/node-record.md). */
export interface NodeRecord {
  readonly formatVersion: 1;
  readonly network: Digest;
  /** Key id of the node: the one that signed. */
  readonly node: string;
  /** `host:port`; an IPv6 host in brackets. Best first. */
  readonly addresses: readonly string[];
  /** Grows with each record of a node; the highest counts. Milliseconds since the epoch when it was made. */
  readonly sequence: number;
  readonly notAfterMs: number;
}

const address = z.string().max(272).refine(isAddress, 'expected host:port');

const nodeRecord: z.ZodType<NodeRecord> = z
  .strictObject({
    formatVersion: z.literal(1),
    network: digest,
    node: hex32,
    addresses: z.array(address).max(NODE_RECORD_LIMITS.addressesMax),
    sequence: z.int().nonnegative(),
    notAfterMs: z.int().nonnegative(),
  })
  .refine(
    ({ sequence, notAfterMs }) => notAfterMs > sequence && notAfterMs - sequence <= NODE_RECORD_LIMITS.lifeMsMax,
    'expected a life of at most a week',
  );

/** `host:port` with a host name, an IPv4 address or an IPv6 address in brackets. */
function isAddress(text: string): boolean {
  const match = /^(?:\[([0-9a-fA-F:.]+)\]|([A-Za-z0-9.-]{1,253})):([1-9][0-9]{0,4})$/.exec(text);
  return match !== null && Number(match[3]) <= 65_535 && (match[1] === undefined || isIP(match[1]) === 6);
}

export function encodeNodeRecord(record: NodeRecord): Uint8Array {
  return utf8(canonicalJson(record));
}

/** Errors: `record-invalid`. */
export function decodeSignedNodeRecord(bytes: Uint8Array): {
  readonly record: NodeRecord;
  readonly envelope: Envelope;
  readonly chain: CertificateChain;
} {
  const { envelope, chain } = decodeSigned(bytes, NODE_RECORD_TYPE, NODE_RECORD_LIMITS.recordBytesMax);
  const record = decodeSignedPayload(nodeRecord, envelope);
  if (record.node !== envelope.signatures[0]!.keyid) {
    throw new HyperMeshError('record-invalid', 'A node record is about another node than the one that signed it.');
  }
  return { record, envelope, chain };
}
