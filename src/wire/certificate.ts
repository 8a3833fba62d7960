import { concat, equal, fromHex, hex, utf8 } from '../base/bytes.ts';
import {
  DerError,
  DerValue,
  der,
  derBits,
  derNatural,
  derOid,
  derSequence,
  derTime,
  explicit,
  TAG,
} from '../base/der.ts';
import { sha256 } from '../base/digest.ts';
import { HyperMeshError } from '../base/errors.ts';
import { keyIdOf, type PublicKeys } from './key-id.ts';
import { SIGNATURE_LIMITS } from './signature.ts';

/**
 * X.509 v3 certificates and v2 revocation lists of a HyperMesh network (docs/protocol/certificate.md).
 *
 * Each is signed twice: by FALCON-1024 (padded) in the usual place, and by Ed25519 in the alternative-signature extensions of
 * ITU-T X.509 (2019) section 9.8. This file only encodes and decodes; `subsystems/trustchain/path.ts` decides what to believe.
 */

export type CertificateRole = 'root' | 'intermediate' | LeafRole;
/** Signs packages; votes and keeps the log; speaks for a machine in a network. */
export type LeafRole = 'publisher' | 'validator' | 'node';
export type RevocationReason = 'key-compromise' | 'superseded' | 'cessation-of-operation';

/** Both signatures over the same meaning: FALCON over the whole to-be-signed part, Ed25519 over it without the marked fields. */
export interface DoubleSigned {
  readonly falcon: { readonly bytes: Uint8Array; readonly signature: Uint8Array };
  readonly ed25519: { readonly bytes: Uint8Array; readonly signature: Uint8Array };
}

export interface Certificate {
  readonly der: Uint8Array;
  /** SHA-256 of the DER, 64 hex digits. */
  readonly fingerprint: string;
  /** Hexadecimal. */
  readonly serial: string;
  /** Readable form; for comparisons use the DER. */
  readonly issuer: string;
  readonly subject: string;
  readonly issuerDer: Uint8Array;
  readonly subjectDer: Uint8Array;
  readonly notBeforeMs: number;
  readonly notAfterMs: number;
  readonly keys: PublicKeys;
  readonly keyId: string;
  /** Null when the extension is absent. */
  readonly basicConstraints: { readonly ca: boolean; readonly pathLengthMax: number | null } | null;
  readonly keyUsage: {
    readonly signs: boolean;
    readonly signsCertificates: boolean;
    readonly signsLists: boolean;
  } | null;
  /** Leaf roles in the extended key usage; unknown purposes are left out. */
  readonly roles: readonly LeafRole[];
  readonly subjectKeyId: string | null;
  readonly authorityKeyId: string | null;
  /** Object identifiers of critical extensions that this version does not know. */
  readonly unknownCritical: readonly string[];
  readonly signed: DoubleSigned;
}

export interface RevocationList {
  readonly der: Uint8Array;
  readonly issuerDer: Uint8Array;
  readonly number: number;
  readonly thisUpdateMs: number;
  readonly nextUpdateMs: number;
  readonly authorityKeyId: string | null;
  /** Serial (hexadecimal) -> when and why. */
  readonly revoked: ReadonlyMap<string, { readonly atMs: number; readonly reason: RevocationReason }>;
  readonly signed: DoubleSigned;
}

/** The part of an authority that signs. */
export interface CertificateSigner {
  falcon(bytes: Uint8Array): Promise<Uint8Array>;
  ed25519(bytes: Uint8Array): Promise<Uint8Array>;
}

const OID = {
  /** falconpadded1024 of the Open Quantum Safe provider. */
  falcon: '1.3.9999.3.19',
  ed25519: '1.3.101.112',
  commonName: '2.5.4.3',
  organization: '2.5.4.10',
  subjectKeyId: '2.5.29.14',
  keyUsage: '2.5.29.15',
  basicConstraints: '2.5.29.19',
  crlNumber: '2.5.29.20',
  reason: '2.5.29.21',
  authorityKeyId: '2.5.29.35',
  extendedKeyUsage: '2.5.29.37',
  altPublicKey: '2.5.29.72',
  altAlgorithm: '2.5.29.73',
  altSignature: '2.5.29.74',
} as const;

/** Purposes under an arc of our own: 2.25 and a random UUID (ITU-T X.667). */
const PURPOSE_ARC = '2.25.329800735698586629295641978511506172918';
const PURPOSES: Readonly<Record<LeafRole, string>> = {
  publisher: `${PURPOSE_ARC}.1`,
  validator: `${PURPOSE_ARC}.2`,
  node: `${PURPOSE_ARC}.3`,
};

/** DER of the two algorithm identifiers, parameters absent. */
const FALCON_ALGORITHM = derSequence(derOid(OID.falcon));
const ED25519_ALGORITHM = derSequence(derOid(OID.ed25519));

const CERTIFICATE_VERSION = der(explicit(0), derNatural(2));
const REVOCATION_LIST_VERSION = derNatural(1);
const CERTIFICATE_SHAPE: Shape = { algorithmAt: 2, extensionsTag: explicit(3) };
const REVOCATION_LIST_SHAPE: Shape = { algorithmAt: 1, extensionsTag: explicit(0) };

/** Key usage: signing certificates and lists; signing documents. */
const USAGE_AUTHORITY = fromHex('03020106');
const USAGE_LEAF = fromHex('03020780');
/** `[0] IMPLICIT OCTET STRING` of an authority key identifier. */
const KEY_IDENTIFIER = 0x80;

/** SEQUENCE { 2.5.29.74, OCTET STRING { BIT STRING of 64 bytes } } up to the signature, and SEQUENCE { 2.5.29.73, Ed25519 }. */
const ALT_SIGNATURE_PREFIX = fromHex('304a0603551d4a0443034100');
const ALT_ALGORITHM_EXTENSION = fromHex('300e0603551d490407300506032b6570');

const FALCON_KEY_BYTES = 1793;
const FALCON_SIGNATURE_BYTES = 1280;

// --- encoding

export interface CertificateFields {
  readonly role: CertificateRole;
  /** 1 to 20 bytes, positive. */
  readonly serial: Uint8Array;
  readonly subject: { readonly commonName: string; readonly organization: string };
  readonly keys: PublicKeys;
  /** Whole seconds count; the rest is cut off. */
  readonly notBeforeMs: number;
  readonly notAfterMs: number;
  /** The authority; absent for a root, which signs itself. */
  readonly issuer?: { readonly subjectDer: Uint8Array; readonly keyId: string };
  /** Replaces the constraints that the role implies; for tests and for authorities of another shape. */
  readonly pathLengthMax?: number;
}

/** How many authorities may follow one of that role. */
const PATH_LENGTH: Readonly<Record<'root' | 'intermediate', number>> = { root: 3, intermediate: 0 };

export async function issueCertificate(fields: CertificateFields, signer: CertificateSigner): Promise<Uint8Array> {
  const { role, keys } = fields;
  const authority = role === 'root' || role === 'intermediate';
  const subject = name(fields.subject);
  const keyId = keyIdOf(keys);
  const extensions = [
    extension(
      OID.basicConstraints,
      'critical',
      authority
        ? derSequence(der(TAG.boolean, Uint8Array.of(0xff)), derNatural(fields.pathLengthMax ?? PATH_LENGTH[role]))
        : derSequence(),
    ),
    extension(OID.keyUsage, 'critical', authority ? USAGE_AUTHORITY : USAGE_LEAF),
    ...(authority ? [] : [extension(OID.extendedKeyUsage, 'critical', derSequence(derOid(PURPOSES[role])))]),
    extension(OID.subjectKeyId, 'optional', der(TAG.octetString, fromHex(keyId))),
    authorityKeyId(fields.issuer?.keyId ?? keyId),
    extension(OID.altPublicKey, 'optional', publicKeyInfo(ED25519_ALGORITHM, keys.ed25519)),
  ];
  const tbs = (all: readonly Uint8Array[]) =>
    derSequence(
      CERTIFICATE_VERSION,
      der(TAG.integer, fields.serial),
      FALCON_ALGORITHM,
      fields.issuer?.subjectDer ?? subject,
      derSequence(derTime(fields.notBeforeMs), derTime(fields.notAfterMs)),
      subject,
      publicKeyInfo(FALCON_ALGORITHM, keys.falcon),
      der(CERTIFICATE_SHAPE.extensionsTag, derSequence(...all)),
    );
  return doubleSign(tbs, extensions, CERTIFICATE_SHAPE, signer);
}

export interface RevocationListFields {
  readonly issuer: { readonly subjectDer: Uint8Array; readonly keyId: string };
  /** Grows by one with each list of an issuer. */
  readonly number: number;
  readonly thisUpdateMs: number;
  readonly nextUpdateMs: number;
  readonly revoked: readonly { readonly serial: string; readonly atMs: number; readonly reason: RevocationReason }[];
}

/** CRLReason of RFC 5280, 5.3.1. */
const REASONS: Readonly<Record<RevocationReason, number>> = {
  'key-compromise': 1,
  superseded: 4,
  'cessation-of-operation': 5,
};

export async function issueRevocationList(
  fields: RevocationListFields,
  signer: CertificateSigner,
): Promise<Uint8Array> {
  const revoked = fields.revoked.map(({ serial, atMs, reason }) =>
    derSequence(
      der(TAG.integer, fromHex(serial)),
      derTime(atMs),
      derSequence(extension(OID.reason, 'optional', der(TAG.enumerated, Uint8Array.of(REASONS[reason])))),
    ),
  );
  const tbs = (all: readonly Uint8Array[]) =>
    derSequence(
      REVOCATION_LIST_VERSION,
      FALCON_ALGORITHM,
      fields.issuer.subjectDer,
      derTime(fields.thisUpdateMs),
      derTime(fields.nextUpdateMs),
      // RFC 5280: absent, not empty, when nothing is revoked.
      ...(revoked.length === 0 ? [] : [derSequence(...revoked)]),
      der(REVOCATION_LIST_SHAPE.extensionsTag, derSequence(...all)),
    );
  const extensions = [
    authorityKeyId(fields.issuer.keyId),
    extension(OID.crlNumber, 'optional', derNatural(fields.number)),
  ];
  return doubleSign(tbs, extensions, REVOCATION_LIST_SHAPE, signer);
}

/** Ed25519 first, over the part without the marked fields; then its signature goes in and FALCON signs the whole. */
async function doubleSign(
  tbs: (extensions: readonly Uint8Array[]) => Uint8Array,
  extensions: readonly Uint8Array[],
  shape: Shape,
  signer: CertificateSigner,
): Promise<Uint8Array> {
  const complete = (signature: Uint8Array) =>
    tbs([...extensions, ALT_ALGORITHM_EXTENSION, concat(ALT_SIGNATURE_PREFIX, signature)]);
  const alternative = await signer.ed25519(splitTbs(complete(new Uint8Array(64)), shape).ed25519Bytes);
  const bytes = complete(alternative);
  const signature = await signer.falcon(bytes);
  return derSequence(bytes, FALCON_ALGORITHM, derBits(signature));
}

function extension(oid: string, weight: 'critical' | 'optional', value: Uint8Array): Uint8Array {
  const critical = weight === 'critical' ? [der(TAG.boolean, Uint8Array.of(0xff))] : [];
  return derSequence(derOid(oid), ...critical, der(TAG.octetString, value));
}

function authorityKeyId(keyId: string): Uint8Array {
  return extension(OID.authorityKeyId, 'optional', derSequence(der(KEY_IDENTIFIER, fromHex(keyId))));
}

function publicKeyInfo(algorithm: Uint8Array, key: Uint8Array): Uint8Array {
  return derSequence(algorithm, derBits(key));
}

function name(subject: { readonly commonName: string; readonly organization: string }): Uint8Array {
  const part = (oid: string, text: string) => der(TAG.set, derSequence(derOid(oid), der(TAG.utf8String, utf8(text))));
  return derSequence(part(OID.organization, subject.organization), part(OID.commonName, subject.commonName));
}

// --- decoding

/** Errors: `certificate-invalid` for anything that is not a certificate of this profile in DER. */
export function decodeCertificate(der: Uint8Array): Certificate {
  if (der.length > SIGNATURE_LIMITS.certificateBytesMax) {
    throw invalid(
      `A certificate has at most ${SIGNATURE_LIMITS.certificateBytesMax} bytes, but this one has ${der.length}.`,
    );
  }
  return orInvalid('certificate', () => {
    const outer = splitOuter(der);
    const { fields, ...parts } = splitTbs(outer.tbs, CERTIFICATE_SHAPE);
    const [version, serial, , issuer, validity, subject, subjectKey, extensions, ...more] = fields;
    if (version === undefined || !equal(version.whole, CERTIFICATE_VERSION))
      throw invalid('A certificate of X.509 version 3 was expected.');
    // Their place is between the key and the extensions, which are last.
    if (extensions?.tag !== CERTIFICATE_SHAPE.extensionsTag || more.length > 0)
      throw invalid('A certificate with unique identifiers, or with a part missing, is not accepted.');
    const [notBefore, notAfter, ...others] = validity!.expect(TAG.sequence).children();
    if (notBefore === undefined || notAfter === undefined || others.length > 0)
      throw invalid('A validity of two times was expected.');
    const found = extensionsOf(parts.extensions);
    const keys = {
      falcon: keyOf(subjectKey!.expect(TAG.sequence), FALCON_ALGORITHM, FALCON_KEY_BYTES),
      ed25519: keyOf(found.required(OID.altPublicKey, TAG.sequence), ED25519_ALGORITHM, 32),
    };
    return {
      der,
      fingerprint: hex(sha256(der)),
      serial: serialOf(serial!),
      issuer: nameText(issuer!),
      subject: nameText(subject!),
      issuerDer: issuer!.whole,
      subjectDer: subject!.whole,
      notBeforeMs: notBefore.timeMs(),
      notAfterMs: notAfter.timeMs(),
      keys,
      keyId: keyIdOf(keys),
      basicConstraints: constraintsOf(found.optional(OID.basicConstraints, TAG.sequence)),
      keyUsage: usageOf(found.optional(OID.keyUsage, TAG.bitString)),
      roles: rolesOf(found.optional(OID.extendedKeyUsage, TAG.sequence)),
      subjectKeyId: keyIdText(found.optional(OID.subjectKeyId, TAG.octetString)),
      authorityKeyId: keyIdText(issuerKeyOf(found.optional(OID.authorityKeyId, TAG.sequence))),
      unknownCritical: found.unknownCritical,
      signed: signedOf(outer, parts),
    };
  });
}

/** Errors: `certificate-invalid` for anything that is not a revocation list of this profile in DER. */
export function decodeRevocationList(der: Uint8Array): RevocationList {
  if (der.length > SIGNATURE_LIMITS.revocationListBytesMax) {
    throw invalid(`A revocation list has at most ${SIGNATURE_LIMITS.revocationListBytesMax} bytes.`);
  }
  return orInvalid('revocation list', () => {
    const outer = splitOuter(der);
    const { fields, ...parts } = splitTbs(outer.tbs, REVOCATION_LIST_SHAPE);
    const [version, , issuer, thisUpdate, nextUpdate, ...rest] = fields;
    if (version === undefined || !equal(version.whole, REVOCATION_LIST_VERSION))
      throw invalid('A revocation list of version 2 was expected.');
    if (nextUpdate?.tag !== TAG.utcTime && nextUpdate?.tag !== TAG.generalizedTime)
      throw invalid('A revocation list without a next update is not accepted.');
    // The extensions are last; before them, what is revoked, if anything is.
    if (rest.length < 1 || rest.length > 2) throw invalid('A revocation list has a part too many or too few.');
    const found = extensionsOf(parts.extensions);
    const foreign = found.unknownCritical[0];
    if (foreign !== undefined) throw invalid(`The revocation list has the unknown critical extension ${foreign}.`);
    // Names are compared by their bytes; that it is one is checked all the same.
    nameText(issuer!);
    const revoked = new Map(rest.length === 1 ? [] : rest[0]!.expect(TAG.sequence).children().map(revokedOf));
    return {
      der,
      issuerDer: issuer!.whole,
      number: found.required(OID.crlNumber, TAG.integer).count(),
      thisUpdateMs: thisUpdate!.timeMs(),
      nextUpdateMs: nextUpdate.timeMs(),
      authorityKeyId: keyIdText(issuerKeyOf(found.optional(OID.authorityKeyId, TAG.sequence))),
      revoked,
      signed: signedOf(outer, parts),
    };
  });
}

function revokedOf(entry: DerValue): [string, { atMs: number; reason: RevocationReason }] {
  const [serial, at, extensions, ...more] = entry.expect(TAG.sequence).children();
  if (serial === undefined || at === undefined || extensions === undefined || more.length > 0)
    throw invalid('An entry of the revocation list does not say which certificate, when and why.');
  const about = extensionsOf(extensions.expect(TAG.sequence).children());
  const unknown = about.unknownCritical[0];
  if (unknown !== undefined)
    throw invalid(`An entry of the revocation list has the unknown critical extension ${unknown}.`);
  const { content } = about.required(OID.reason, TAG.enumerated);
  const reason = (Object.keys(REASONS) as RevocationReason[]).find((key) => REASONS[key] === content[0]);
  if (reason === undefined || content.length !== 1)
    throw invalid('An entry of the revocation list gives a reason of another profile.');
  return [serialOf(serial), { atMs: at.timeMs(), reason }];
}

/** Values of extensions by identifier. An extension that occurs twice is refused, as RFC 5280 section 4.2 demands. */
function extensionsOf(extensions: readonly DerValue[]) {
  const values = new Map<string, Uint8Array>();
  const unknownCritical: string[] = [];
  for (const extension of extensions) {
    const [id, ...rest] = extension.expect(TAG.sequence).children();
    const value = rest.pop();
    const [critical, ...more] = rest;
    if (id === undefined || value === undefined || more.length > 0) throw invalid('An extension is malformed.');
    const oid = id.oid();
    if (values.has(oid)) throw invalid(`The extension ${oid} occurs twice.`);
    critical?.expectTrue();
    values.set(oid, value.expect(TAG.octetString).content);
    if (critical !== undefined && !KNOWN.has(oid)) unknownCritical.push(oid);
  }
  const optional = (oid: string, tag: number): DerValue | undefined => {
    const value = values.get(oid);
    return value === undefined ? undefined : DerValue.read(value, tag);
  };
  return {
    unknownCritical,
    optional,
    required(oid: string, tag: number): DerValue {
      const value = optional(oid, tag);
      if (value === undefined) throw invalid(`The required extension ${oid} is missing.`);
      return value;
    },
  };
}

const KNOWN: ReadonlySet<string> = new Set(Object.values(OID));

function constraintsOf(value: DerValue | undefined): Certificate['basicConstraints'] {
  if (value === undefined) return null;
  const [ca, length, ...more] = value.children();
  if (more.length > 0) throw invalid('The basic constraints are malformed.');
  ca?.expectTrue();
  return { ca: ca !== undefined, pathLengthMax: length === undefined ? null : length.count() };
}

/** Bits of the key usage, RFC 5280, 4.2.1.3. */
function usageOf(value: DerValue | undefined): Certificate['keyUsage'] {
  if (value === undefined) return null;
  const bits = value.namedBits();
  return { signs: bits.has(0), signsCertificates: bits.has(5), signsLists: bits.has(6) };
}

function rolesOf(value: DerValue | undefined): LeafRole[] {
  const purposes = value?.children().map((purpose) => purpose.oid()) ?? [];
  return (Object.keys(PURPOSES) as LeafRole[]).filter((role) => purposes.includes(PURPOSES[role]));
}

/** The key identifier; this profile names an authority by nothing else. */
function issuerKeyOf(value: DerValue | undefined): DerValue | undefined {
  return value?.only(KEY_IDENTIFIER);
}

/** A copy of the key: it outlives the certificate, and goes to other threads. */
function keyOf(info: DerValue, algorithm: Uint8Array, length: number): Uint8Array {
  const [named, bits, ...more] = info.children();
  if (named === undefined || bits === undefined || more.length > 0 || !equal(named.whole, algorithm))
    throw invalid('A public key has another algorithm than this profile.');
  const key = new Uint8Array(bits.wholeBits());
  if (key.length !== length) throw invalid(`A public key of ${length} bytes was expected.`);
  return key;
}

function keyIdText(value: DerValue | undefined): string | null {
  return value === undefined ? null : hex(value.content);
}

function serialOf(value: DerValue): string {
  const bytes = value.natural();
  if (bytes.length > 20 || (bytes.length === 1 && bytes[0] === 0))
    throw invalid('A serial number is positive and has at most 20 bytes.');
  return hex(bytes);
}

const SHORT_NAMES: Readonly<Record<string, string>> = { [OID.commonName]: 'CN', [OID.organization]: 'O' };

function nameText(value: DerValue): string {
  const parts = value
    .expect(TAG.sequence)
    .children()
    .flatMap((relative) => relative.expect(TAG.set).children())
    .map((part) => {
      const [type, text, ...more] = part.expect(TAG.sequence).children();
      if (type === undefined || text === undefined || more.length > 0) throw invalid('A name is malformed.');
      const oid = type.oid();
      return `${SHORT_NAMES[oid] ?? oid}=${text.text()}`;
    });
  // Names come from outside and end up on terminals.
  return parts
    .join(', ')
    .replaceAll(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, '\ufffd')
    .slice(0, 256);
}

// --- the shell of both, and the two signatures

/** Which element names the algorithm, and which tag holds the extensions. */
interface Shape {
  readonly algorithmAt: number;
  readonly extensionsTag: number;
}

interface Outer {
  readonly tbs: Uint8Array;
  readonly signature: Uint8Array;
}

interface Split {
  /** Elements of the to-be-signed part; the last one holds the extensions. */
  readonly fields: readonly DerValue[];
  readonly extensions: readonly DerValue[];
  readonly ed25519Bytes: Uint8Array;
  readonly ed25519Signature: Uint8Array;
}

function splitOuter(der: Uint8Array): Outer {
  const [tbs, algorithm, signature, ...more] = DerValue.read(der, TAG.sequence).children();
  if (tbs?.tag !== TAG.sequence || algorithm === undefined || signature === undefined || more.length > 0) {
    throw invalid('Expected a signed part, an algorithm and a signature.');
  }
  const bytes = signature.wholeBits();
  if (!equal(algorithm.whole, FALCON_ALGORITHM) || bytes.length !== FALCON_SIGNATURE_BYTES) {
    throw invalid(`Expected a signature of ${FALCON_SIGNATURE_BYTES} bytes by the algorithm ${OID.falcon}.`);
  }
  return { tbs: tbs.whole, signature: bytes };
}

/** Takes the Ed25519 signature out, and rebuilds what it covers: everything but the algorithm field and that last extension. */
function splitTbs(tbs: Uint8Array, shape: Shape): Split {
  const fields = DerValue.read(tbs, TAG.sequence).children();
  const algorithm = fields[shape.algorithmAt];
  if (algorithm === undefined || !equal(algorithm.whole, FALCON_ALGORITHM)) {
    throw invalid('The algorithm inside the signed part differs from the one outside.');
  }
  const last = fields.at(-1);
  if (last?.tag !== shape.extensionsTag) throw invalid('The extensions are missing, or something follows them.');
  const extensions = last.only(TAG.sequence).children();
  const alternative = extensions.at(-1)?.whole;
  const prefix = ALT_SIGNATURE_PREFIX;
  if (
    alternative === undefined ||
    alternative.length !== prefix.length + 64 ||
    !equal(alternative.subarray(0, prefix.length), prefix)
  ) {
    throw invalid('The last extension is not the Ed25519 signature.');
  }
  const named = extensions.at(-2);
  if (named === undefined || !equal(named.whole, ALT_ALGORITHM_EXTENSION)) {
    throw invalid('The algorithm of the second signature is not Ed25519.');
  }
  const kept = der(shape.extensionsTag, derSequence(...extensions.slice(0, -1).map(({ whole }) => whole)));
  const before = fields.slice(0, -1).filter((field) => field !== algorithm);
  return {
    fields,
    extensions,
    ed25519Bytes: derSequence(...before.map(({ whole }) => whole), kept),
    ed25519Signature: alternative.subarray(prefix.length),
  };
}

function signedOf(outer: Outer, parts: Pick<Split, 'ed25519Bytes' | 'ed25519Signature'>): DoubleSigned {
  return {
    falcon: { bytes: outer.tbs, signature: outer.signature },
    ed25519: { bytes: parts.ed25519Bytes, signature: parts.ed25519Signature },
  };
}

/** What is wrong with hostile bytes becomes the coded refusal. */
function orInvalid<T>(what: string, decode: () => T): T {
  try {
    return decode();
  } catch (error) {
    if (!(error instanceof DerError)) throw error;
    throw new HyperMeshError('certificate-invalid', `The bytes are not a ${what} in DER. ${error.message}`, {
      cause: error,
    });
  }
}

function invalid(message: string): HyperMeshError {
  return new HyperMeshError('certificate-invalid', message);
}
