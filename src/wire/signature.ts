import { z } from 'zod';
import { base64, base64Length, concat, fromBase64, utf8 } from '../base/bytes.ts';
import type { Digest } from '../base/digest.ts';
import { HyperMeshError } from '../base/errors.ts';
import { digest, hex32 } from './fields.ts';
import type { PublicKeys } from './key-id.ts';

/** Limits of every signed thing (docs/protocol/signature.md). Bytes are counted before base64. */
export const SIGNATURE_LIMITS = {
  payloadTypeLengthMax: 128,
  payloadBytesMax: 1_048_576,
  certificateBytesMax: 16_384,
  certificatesMax: 5,
  revocationListBytesMax: 1_048_576,
  revocationListsMax: 8,
  originLengthMax: 256,
  /** Enough for 2^53 leaves. */
  logPathMax: 53,
} as const;

/** DSSE envelope (docs/protocol/signature.md): payload and signatures by FALCON-1024 and Ed25519, both required, in this order. */
export interface Envelope {
  readonly payloadType: string;
  /** Base64 of the exact bytes that were signed. */
  readonly payload: string;
  readonly signatures: readonly {
    readonly keyid: string;
    readonly alg: 'falcon1024-r3-padded' | 'ed25519';
    readonly sig: string;
  }[];
}

/** Certificates (DER, base64), leaf first, root last. */
export type CertificateChain = readonly string[];

/** The root of a network and what it has revoked so far. */
export interface TrustAnchor {
  /** Root certificate, DER in base64. */
  readonly root: string;
  /** Certificate revocation lists, DER in base64: a current one of each authority in the chain is required. */
  readonly revocations: readonly string[];
}

export interface SignedTreeHead {
  readonly origin: string;
  readonly size: number;
  /** RFC 6962 root hash. */
  readonly root: Digest;
  readonly timestampMs: number;
  /** Envelope over the canonical JSON of the four fields above, by the validator. */
  readonly envelope: Envelope;
  /** Certificates of that validator. */
  readonly chain: CertificateChain;
}

export interface LogInclusion {
  readonly index: number;
  /** Sibling hashes from leaf to root, 64 hex digits each. */
  readonly path: readonly string[];
  readonly head: SignedTreeHead;
}

/** Text that decodes to between `min` and `max` bytes and is the only base64 text of them: no white space, no loose trailing bits. */
export function canonicalBase64(min: number, max: number) {
  return z
    .string()
    .max(Math.ceil(max / 3) * 4, `expected base64 of at most ${max} bytes`)
    .refine(
      (text) => {
        const length = base64Length(text);
        return length !== undefined && length >= min && length <= max;
      },
      `expected canonical base64 of ${min === max ? min : `${min} to ${max}`} bytes`,
    );
}

const wholeNumber = z.int().nonnegative();

export const envelope: z.ZodType<Envelope> = z
  .strictObject({
    payloadType: z
      .string()
      .max(SIGNATURE_LIMITS.payloadTypeLengthMax)
      .regex(/^[a-z]+\/[a-z0-9][a-z0-9.+-]*$/, 'expected a media type in lower case'),
    payload: canonicalBase64(0, SIGNATURE_LIMITS.payloadBytesMax),
    signatures: z.tuple(
      [
        z.strictObject({ keyid: hex32, alg: z.literal('falcon1024-r3-padded'), sig: canonicalBase64(1280, 1280) }),
        z.strictObject({ keyid: hex32, alg: z.literal('ed25519'), sig: canonicalBase64(64, 64) }),
      ],
      {
        error: ({ code }) =>
          code === 'invalid_type' ? undefined : 'expected both signatures, FALCON-1024 and Ed25519',
      },
    ),
  })
  .refine((value) => value.signatures[0].keyid === value.signatures[1].keyid, 'expected both signatures by one key id');

export const certificateChain: z.ZodType<CertificateChain> = z
  .array(canonicalBase64(1, SIGNATURE_LIMITS.certificateBytesMax))
  .min(1)
  .max(SIGNATURE_LIMITS.certificatesMax);

export const trustAnchor: z.ZodType<TrustAnchor> = z.strictObject({
  root: canonicalBase64(1, SIGNATURE_LIMITS.certificateBytesMax),
  revocations: z
    .array(canonicalBase64(1, SIGNATURE_LIMITS.revocationListBytesMax))
    .max(SIGNATURE_LIMITS.revocationListsMax),
});

export const signedTreeHead: z.ZodType<SignedTreeHead> = z.strictObject({
  origin: z.string().min(1).max(SIGNATURE_LIMITS.originLengthMax),
  size: wholeNumber,
  root: digest,
  timestampMs: wholeNumber,
  envelope,
  chain: certificateChain,
});

export const logInclusion: z.ZodType<LogInclusion> = z.strictObject({
  index: wholeNumber,
  path: z.array(hex32).max(SIGNATURE_LIMITS.logPathMax),
  head: signedTreeHead,
});

/** An envelope with its parts decoded. */
export interface OpenEnvelope {
  readonly keyId: string;
  readonly payload: Uint8Array;
  /** What both algorithms sign. */
  readonly signed: Uint8Array;
  readonly falcon: Uint8Array;
  readonly ed25519: Uint8Array;
}

/** Checks the form of an envelope and decodes it; says nothing about whether the signatures are true. Errors: `signature-invalid`. */
export function openEnvelope(value: unknown): OpenEnvelope {
  const parsed = envelope.safeParse(value);
  if (!parsed.success) {
    throw new HyperMeshError('signature-invalid', `The signature envelope is malformed: ${firstIssue(parsed.error)}.`, {
      hint: 'An envelope holds exactly two signatures by one key: falcon1024-r3-padded, then ed25519.',
    });
  }
  return opened(parsed.data);
}

/** Of an envelope whose form was checked before. */
export function opened({ payloadType, payload, signatures }: Envelope): OpenEnvelope {
  const bytes = fromBase64(payload);
  return {
    keyId: signatures[0]!.keyid,
    payload: bytes,
    signed: pae(payloadType, bytes),
    falcon: fromBase64(signatures[0]!.sig),
    ed25519: fromBase64(signatures[1]!.sig),
  };
}

/** Whether these keys made both signatures of the envelope, without any certificate. Its form was checked before. */
export function envelopeHolds(
  value: Envelope,
  keys: PublicKeys,
  check: {
    ed25519(signature: Uint8Array, message: Uint8Array, publicKey: Uint8Array): boolean;
    falcon(signature: Uint8Array, message: Uint8Array, publicKey: Uint8Array): boolean;
  },
): boolean {
  const { signed, falcon, ed25519 } = opened(value);
  return check.ed25519(ed25519, signed, keys.ed25519) && check.falcon(falcon, signed, keys.falcon);
}

export function sealEnvelope(
  payloadType: string,
  payload: Uint8Array,
  keyId: string,
  signatures: { readonly falcon: Uint8Array; readonly ed25519: Uint8Array },
): Envelope {
  return {
    payloadType,
    payload: base64(payload),
    signatures: [
      { keyid: keyId, alg: 'falcon1024-r3-padded', sig: base64(signatures.falcon) },
      { keyid: keyId, alg: 'ed25519', sig: base64(signatures.ed25519) },
    ],
  };
}

/** The pre-authentication encoding of DSSE v1: `DSSEv1 <length> <type> <length> <payload>`, lengths in bytes, decimal. */
export function pae(payloadType: string, payload: Uint8Array): Uint8Array {
  return concat(utf8(paeHead(payloadType, payload.length)), payload);
}

/** {@link pae} of the UTF-8 of a text. */
export function paeOfText(payloadType: string, payload: string): Uint8Array {
  return utf8(`${paeHead(payloadType, Buffer.byteLength(payload))}${payload}`);
}

function paeHead(payloadType: string, bytes: number): string {
  return `DSSEv1 ${Buffer.byteLength(payloadType)} ${payloadType} ${bytes} `;
}

/** The first thing a schema found wrong, as part of a sentence. Never quotes the input. */
export function firstIssue(error: z.ZodError): string {
  const issue = error.issues[0];
  if (issue === undefined) return 'it has a wrong shape';
  return issue.path.length === 0 ? issue.message : `${issue.path.join('.')}: ${issue.message}`;
}
