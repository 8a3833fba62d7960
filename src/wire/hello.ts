import { z } from 'zod';
import { fromUtf8, utf8 } from '../base/bytes.ts';
import type { Digest } from '../base/digest.ts';
import { HyperMeshError } from '../base/errors.ts';
import { canonicalJson } from '../base/json.ts';
import { digest, hex32, timeMs } from './fields.ts';
import {
  type CertificateChain,
  certificateChain,
  type Envelope,
  envelope,
  firstIssue,
  type TrustAnchor,
  trustAnchor,
} from './signature.ts';

/** DSSE payload types. */
export const HELLO_TYPE = 'application/vnd.hypermesh.hello.v1+json';
export const VOUCHER_TYPE = 'application/vnd.hypermesh.voucher.v1+json';

export const HELLO_LIMITS = {
  /** Of the document, when the other side is a member. */
  bytesMax: 131_072,
  /** Of the document that a guest gets: it carries the revocation lists of the network. */
  guestBytesMax: 4_194_304,
  /** Of a signed payload. */
  payloadBytesMax: 2_048,
  lifeMsMax: 24 * 3_600_000,
} as const;

/** What a node signs to speak for one process: this TLS key is mine, for so long, in that network (docs/protocol/hello.md). */
export interface Hello {
  readonly networkId: Digest;
  /** Key id of the signer. */
  readonly node: string;
  /** Key id of the publisher of the same home; the voucher says so too. */
  readonly publisher: string;
  /** SHA-256 of the subject public key info of the TLS certificate, 64 hex digits. */
  readonly transport: string;
  readonly notBeforeMs: number;
  readonly notAfterMs: number;
}

/** What a publisher signs once: that node is mine. */
export interface Voucher {
  readonly networkId: Digest;
  readonly node: string;
  readonly publisher: string;
}

export interface Signed {
  readonly envelope: Envelope;
  readonly chain: CertificateChain;
}

/** What one end of a channel sends first. */
export interface HelloDocument {
  readonly hello: Signed;
  readonly voucher: Signed;
  /** For a guest, who knows no root yet. */
  readonly anchor?: TrustAnchor;
}

const signed = z.strictObject({ envelope, chain: certificateChain });

const documentShape = z.strictObject({ hello: signed, voucher: signed, anchor: trustAnchor.exactOptional() });
const helloShape = z.strictObject({
  formatVersion: z.literal(1),
  networkId: digest,
  node: hex32,
  publisher: hex32,
  transport: hex32,
  notBeforeMs: timeMs,
  notAfterMs: timeMs,
});
const voucherShape = z.strictObject({ formatVersion: z.literal(1), networkId: digest, node: hex32, publisher: hex32 });

export function encodeHelloDocument(document: HelloDocument): Uint8Array {
  return utf8(canonicalJson(document));
}

/** The form only: nothing in it is proved yet. Errors: `peer-lied`. */
export function decodeHelloDocument(bytes: Uint8Array, bytesMax: number = HELLO_LIMITS.bytesMax): HelloDocument {
  return canonical('a hello document', bytes, bytesMax, documentShape, encodeHelloDocument);
}

export function encodeHello(hello: Hello): Uint8Array {
  return utf8(canonicalJson({ formatVersion: 1, ...hello }));
}

/** Errors: `peer-lied`. */
export function decodeHello(bytes: Uint8Array): Hello {
  const { formatVersion: _, ...hello } = canonical(
    'a hello',
    bytes,
    HELLO_LIMITS.payloadBytesMax,
    helloShape,
    encodeHello,
  );
  const lifeMs = hello.notAfterMs - hello.notBeforeMs;
  if (lifeMs <= 0 || lifeMs > HELLO_LIMITS.lifeMsMax) throw malformed('a hello', 'it lives too long, or not at all');
  return hello;
}

export function encodeVoucher(voucher: Voucher): Uint8Array {
  return utf8(canonicalJson({ formatVersion: 1, ...voucher }));
}

/** Errors: `peer-lied`. */
export function decodeVoucher(bytes: Uint8Array): Voucher {
  const { formatVersion: _, ...voucher } = canonical(
    'a voucher',
    bytes,
    HELLO_LIMITS.payloadBytesMax,
    voucherShape,
    encodeVoucher,
  );
  return voucher;
}

/** Bytes of that shape, and the only bytes that say so. */
function canonical<Shape>(
  what: string,
  bytes: Uint8Array,
  bytesMax: number,
  shape: z.ZodType<Shape>,
  encode: (value: Shape) => Uint8Array,
): Shape {
  if (bytes.length > bytesMax) throw malformed(what, `it has more than ${bytesMax} bytes`);
  let text: string;
  let value: unknown;
  try {
    text = fromUtf8(bytes);
    value = JSON.parse(text);
  } catch {
    throw malformed(what, 'it is not JSON');
  }
  const parsed = shape.safeParse(value);
  if (!parsed.success) throw malformed(what, firstIssue(parsed.error));
  if (fromUtf8(encode(parsed.data)) !== text) throw malformed(what, 'it is not in canonical form');
  return parsed.data;
}

function malformed(what: string, why: string): HyperMeshError {
  return new HyperMeshError('peer-lied', `The other node sent ${what} that is malformed: ${why}.`);
}
