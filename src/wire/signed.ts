import { z } from 'zod';
import { fromBase64, utf8 } from '../base/bytes.ts';
import { HyperMeshError } from '../base/errors.ts';
import { canonicalJson } from '../base/json.ts';
import { decodeCanonical } from './json-message.ts';
import { type CertificateChain, certificateChain, type Envelope, envelope as envelopeForm } from './signature.ts';

/** A signed statement that travels alone: envelope and certificates of the signer, canonical JSON (docs/protocol/signature.md). */
interface Signed {
  readonly envelope: Envelope;
  readonly chain: CertificateChain;
}

const signed: z.ZodType<Signed> = z.strictObject({ envelope: envelopeForm, chain: certificateChain });

export function encodeSigned({ envelope, chain }: Signed): Uint8Array {
  return utf8(canonicalJson({ envelope, chain }));
}

/** Says nothing about whether the signatures are true. Errors: `record-invalid`. */
export function decodeSigned(bytes: Uint8Array, payloadType: string, bytesMax: number): Signed {
  if (bytes.length > bytesMax) throw invalid(`it has more than ${bytesMax} bytes`);
  const value = decodeCanonical(signed, bytes, invalid);
  if (value.envelope.payloadType !== payloadType) throw invalid('it is a statement about something else');
  return value;
}

/** What an envelope holds, in its only form. Errors: `record-invalid`. */
export function decodeSignedPayload<T>(schema: z.ZodType<T>, { payload }: Envelope): T {
  return decodeCanonical(schema, fromBase64(payload), invalid);
}

function invalid(what: string, cause?: unknown): HyperMeshError {
  return new HyperMeshError('record-invalid', `Expected a signed statement, but ${what}.`, { cause });
}
