import { z } from 'zod';
import { fromUtf8, utf8 } from '../base/bytes.ts';
import { type Digest, digestHex } from '../base/digest.ts';
import { HyperMeshError } from '../base/errors.ts';
import { canonicalJson } from '../base/json.ts';
import { hex32 } from './fields.ts';
import { packageName, semverVersion } from './names.ts';

/** DSSE payload type of an in-toto statement. */
export const STATEMENT_TYPE = 'application/vnd.in-toto+json';

const PREDICATE_TYPE = 'urn:hypermesh:package:v1';

/** What a publisher signs: in-toto Statement v1 with one subject, the OCI manifest (docs/protocol/statement.md). */
export interface PackageStatement {
  readonly name: string;
  readonly version: string;
  /** Digest of the OCI manifest. */
  readonly manifest: Digest;
  /** Digest of the config blob, so that the signature also names the parsed `catalog.yaml`. */
  readonly config: Digest;
  readonly network: Digest;
  readonly signedAtMs: number;
}

const statement = z.strictObject({
  _type: z.literal('https://in-toto.io/Statement/v1'),
  subject: z.tuple([z.strictObject({ name: z.string().max(512), digest: z.strictObject({ sha256: hex32 }) })]),
  predicateType: z.literal(PREDICATE_TYPE),
  predicate: z.strictObject({
    name: packageName,
    version: semverVersion,
    config: z.strictObject({ sha256: hex32 }),
    network: z.strictObject({ sha256: hex32 }),
    signedAtMs: z.int().nonnegative(),
  }),
});

export function encodeStatement(value: PackageStatement): Uint8Array {
  return utf8(
    canonicalJson({
      _type: 'https://in-toto.io/Statement/v1',
      subject: [{ name: `${value.name}@${value.version}`, digest: { sha256: digestHex(value.manifest) } }],
      predicateType: PREDICATE_TYPE,
      predicate: {
        name: value.name,
        version: value.version,
        config: { sha256: digestHex(value.config) },
        network: { sha256: digestHex(value.network) },
        signedAtMs: value.signedAtMs,
      },
    }),
  );
}

/** Errors: `signature-invalid` when the signed bytes are not a package statement in canonical form. At most 8 KiB. */
export function decodeStatement(bytes: Uint8Array): PackageStatement {
  try {
    if (bytes.length > 8192) throw new RangeError('longer than 8 KiB');
    const parsed = statement.parse(JSON.parse(fromUtf8(bytes)));
    const { name, version, config, network, signedAtMs } = parsed.predicate;
    const [subject] = parsed.subject;
    if (subject.name !== `${name}@${version}`) throw new RangeError('subject and predicate name different packages');
    const value: PackageStatement = {
      name,
      version,
      manifest: `sha256:${subject.digest.sha256}`,
      config: `sha256:${config.sha256}`,
      network: `sha256:${network.sha256}`,
      signedAtMs,
    };
    if (fromUtf8(encodeStatement(value)) !== fromUtf8(bytes)) throw new RangeError('not in canonical form');
    return value;
  } catch (error) {
    throw new HyperMeshError('signature-invalid', 'The signed payload is not a package statement.', { cause: error });
  }
}
