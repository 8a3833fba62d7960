import { AsnConvert, OctetString } from '@peculiar/asn1-schema';
import {
  AlgorithmIdentifier,
  AttributeTypeAndValue,
  AttributeValue,
  AuthorityKeyIdentifier,
  BasicConstraints,
  CRLNumber,
  CRLReason,
  CRLReasons,
  ExtendedKeyUsage,
  Extension,
  Extensions,
  KeyIdentifier,
  KeyUsage,
  KeyUsageFlags,
  Name,
  RelativeDistinguishedName,
  RevokedCertificate,
  SubjectKeyIdentifier,
  SubjectPublicKeyInfo,
  TBSCertificate,
  TBSCertList,
  Time,
  Validity,
  Version,
} from '@peculiar/asn1-x509';
import { concat, equal, fromHex, hex, utf8 } from '../base/bytes.ts';
import { sha256 } from '../base/digest.ts';
import { HyperMeshError } from '../base/errors.ts';
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

/** The two public keys of one subject; they are used together and named together by their key id. */
export interface PublicKeys {
  /** 1793 bytes. */
  readonly falcon: Uint8Array;
  /** 32 bytes. */
  readonly ed25519: Uint8Array;
}

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

/** Purposes under an arc of our own (2.25 and a random UUID, ITU-T X.667): `<arc>.1` publisher, `<arc>.2` validator, `<arc>.3` node. */
const PURPOSE_ARC = '2.25.329800735698586629295641978511506172918';
const PURPOSES: Readonly<Record<LeafRole, { readonly oid: string; readonly content: string }>> = {
  publisher: { oid: `${PURPOSE_ARC}.1`, content: '6983f09da7ebcfdee0c7a1a7b2c0948cc8f9d77601' },
  validator: { oid: `${PURPOSE_ARC}.2`, content: '6983f09da7ebcfdee0c7a1a7b2c0948cc8f9d77602' },
  node: { oid: `${PURPOSE_ARC}.3`, content: '6983f09da7ebcfdee0c7a1a7b2c0948cc8f9d77603' },
};

/** DER of the two algorithm identifiers, parameters absent. */
const FALCON_ALGORITHM = fromHex('300706052bce0f0313');
const ED25519_ALGORITHM = fromHex('300506032b6570');

const FALCON_KEY_BYTES = 1793;
const FALCON_SIGNATURE_BYTES = 1280;

/** SHA-256 over both public keys, 64 hex digits: the name of whoever holds them, stable when a certificate is renewed. */
export function keyIdOf(keys: PublicKeys): string {
  return hex(sha256(concat(utf8('hypermesh-key-v1\0'), keys.falcon, keys.ed25519)));
}

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
      true,
      authority
        ? new BasicConstraints({ cA: true, pathLenConstraint: fields.pathLengthMax ?? PATH_LENGTH[role] })
        : new BasicConstraints({ cA: false }),
    ),
    extension(
      OID.keyUsage,
      true,
      new KeyUsage(authority ? KeyUsageFlags.keyCertSign | KeyUsageFlags.cRLSign : KeyUsageFlags.digitalSignature),
    ),
    ...(authority ? [] : [extension(OID.extendedKeyUsage, true, new ExtendedKeyUsage([PURPOSES[role].oid]))]),
    extension(OID.subjectKeyId, false, new SubjectKeyIdentifier(fromHex(keyId).slice().buffer as ArrayBuffer)),
    authorityKeyId(fields.issuer?.keyId ?? keyId),
    extension(OID.altPublicKey, false, publicKeyInfo(OID.ed25519, keys.ed25519)),
  ];
  const tbs = (all: Extension[]) =>
    serialize(
      new TBSCertificate({
        version: Version.v3,
        serialNumber: fields.serial.slice().buffer as ArrayBuffer,
        signature: new AlgorithmIdentifier({ algorithm: OID.falcon }),
        issuer: fields.issuer === undefined ? subject : AsnConvert.parse(fields.issuer.subjectDer, Name),
        validity: new Validity({ notBefore: second(fields.notBeforeMs), notAfter: second(fields.notAfterMs) }),
        subject,
        subjectPublicKeyInfo: publicKeyInfo(OID.falcon, keys.falcon),
        extensions: new Extensions(all),
      }),
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

const REASONS: Readonly<Record<RevocationReason, CRLReasons>> = {
  'key-compromise': CRLReasons.keyCompromise,
  superseded: CRLReasons.superseded,
  'cessation-of-operation': CRLReasons.cessationOfOperation,
};

export async function issueRevocationList(
  fields: RevocationListFields,
  signer: CertificateSigner,
): Promise<Uint8Array> {
  const revokedCertificates = fields.revoked.map(
    ({ serial, atMs, reason }) =>
      new RevokedCertificate({
        userCertificate: fromHex(serial).slice().buffer as ArrayBuffer,
        revocationDate: new Time(second(atMs)),
        crlEntryExtensions: [extension(OID.reason, false, new CRLReason(REASONS[reason]))],
      }),
  );
  const tbs = (all: Extension[]) =>
    serialize(
      new TBSCertList({
        version: Version.v2,
        signature: new AlgorithmIdentifier({ algorithm: OID.falcon }),
        issuer: AsnConvert.parse(fields.issuer.subjectDer, Name),
        thisUpdate: new Time(second(fields.thisUpdateMs)),
        nextUpdate: new Time(second(fields.nextUpdateMs)),
        // RFC 5280: absent, not empty, when nothing is revoked.
        ...(revokedCertificates.length === 0 ? {} : { revokedCertificates }),
        crlExtensions: all,
      }),
    );
  const extensions = [
    authorityKeyId(fields.issuer.keyId),
    extension(OID.crlNumber, false, new CRLNumber(fields.number)),
  ];
  return doubleSign(tbs, extensions, REVOCATION_LIST_SHAPE, signer);
}

/** Ed25519 first, over the part without the marked fields; then its signature goes in and FALCON signs the whole. */
async function doubleSign(
  tbs: (extensions: Extension[]) => Uint8Array,
  extensions: readonly Extension[],
  shape: Shape,
  signer: CertificateSigner,
): Promise<Uint8Array> {
  const algorithm = new Extension({
    extnID: OID.altAlgorithm,
    critical: false,
    extnValue: new OctetString(ED25519_ALGORITHM),
  });
  const complete = (signature: Uint8Array) =>
    tbs([
      ...extensions,
      algorithm,
      new Extension({
        extnID: OID.altSignature,
        critical: false,
        extnValue: new OctetString(tlv(0x03, Uint8Array.of(0), signature)),
      }),
    ]);
  const alternative = await signer.ed25519(splitTbs(complete(new Uint8Array(64)), shape).ed25519Bytes);
  const bytes = complete(alternative);
  const signature = await signer.falcon(bytes);
  return tlv(0x30, bytes, FALCON_ALGORITHM, tlv(0x03, Uint8Array.of(0), signature));
}

function extension(extnID: string, critical: boolean, value: unknown): Extension {
  return new Extension({ extnID, critical, extnValue: new OctetString(serialize(value)) });
}

function authorityKeyId(keyId: string): Extension {
  const keyIdentifier = new KeyIdentifier(fromHex(keyId).slice().buffer as ArrayBuffer);
  return extension(OID.authorityKeyId, false, new AuthorityKeyIdentifier({ keyIdentifier }));
}

function publicKeyInfo(algorithm: string, key: Uint8Array): SubjectPublicKeyInfo {
  return new SubjectPublicKeyInfo({
    algorithm: new AlgorithmIdentifier({ algorithm }),
    subjectPublicKey: key.slice().buffer as ArrayBuffer,
  });
}

function name(subject: { readonly commonName: string; readonly organization: string }): Name {
  const part = (type: string, utf8String: string) =>
    new RelativeDistinguishedName([new AttributeTypeAndValue({ type, value: new AttributeValue({ utf8String }) })]);
  return new Name([part(OID.organization, subject.organization), part(OID.commonName, subject.commonName)]);
}

function second(ms: number): Date {
  return new Date(Math.floor(ms / 1000) * 1000);
}

function serialize(value: unknown): Uint8Array {
  return new Uint8Array(AsnConvert.serialize(value));
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
    const parts = splitTbs(outer.tbs, CERTIFICATE_SHAPE);
    const tbs = AsnConvert.parse(outer.tbs, TBSCertificate);
    if (tbs.version !== Version.v3) throw invalid('A certificate of X.509 version 3 was expected.');
    if (tbs.issuerUniqueID !== undefined || tbs.subjectUniqueID !== undefined) {
      throw invalid('A certificate with unique identifiers is not accepted.');
    }
    const found = extensionsOf(tbs.extensions ?? []);
    const keys = {
      falcon: keyOf(tbs.subjectPublicKeyInfo, OID.falcon, FALCON_KEY_BYTES),
      ed25519: keyOf(found.required(OID.altPublicKey, SubjectPublicKeyInfo), OID.ed25519, 32),
    };
    const basic = found.optional(OID.basicConstraints, BasicConstraints);
    const usage = found.optional(OID.keyUsage, KeyUsage)?.toNumber();
    const purposes = found.raw(OID.extendedKeyUsage);
    return {
      der,
      fingerprint: hex(sha256(der)),
      serial: serialOf(tbs.serialNumber),
      issuer: nameText(tbs.issuer),
      subject: nameText(tbs.subject),
      issuerDer: parts.field(3),
      subjectDer: parts.field(5),
      notBeforeMs: tbs.validity.notBefore.getTime().getTime(),
      notAfterMs: tbs.validity.notAfter.getTime().getTime(),
      keys,
      keyId: keyIdOf(keys),
      basicConstraints: basic === undefined ? null : { ca: basic.cA, pathLengthMax: basic.pathLenConstraint ?? null },
      keyUsage:
        usage === undefined
          ? null
          : {
              signs: (usage & KeyUsageFlags.digitalSignature) !== 0,
              signsCertificates: (usage & KeyUsageFlags.keyCertSign) !== 0,
              signsLists: (usage & KeyUsageFlags.cRLSign) !== 0,
            },
      roles: purposes === undefined ? [] : rolesOf(purposes),
      subjectKeyId: keyIdText(found.optional(OID.subjectKeyId, SubjectKeyIdentifier)),
      authorityKeyId: keyIdText(found.optional(OID.authorityKeyId, AuthorityKeyIdentifier)?.keyIdentifier),
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
    const parts = splitTbs(outer.tbs, REVOCATION_LIST_SHAPE);
    const tbs = AsnConvert.parse(outer.tbs, TBSCertList);
    if (tbs.version !== Version.v2) throw invalid('A revocation list of version 2 was expected.');
    if (tbs.nextUpdate === undefined) throw invalid('A revocation list without a next update is not accepted.');
    const found = extensionsOf(tbs.crlExtensions ?? []);
    const foreign = found.unknownCritical[0];
    if (foreign !== undefined) throw invalid(`The revocation list has the unknown critical extension ${foreign}.`);
    const revoked = new Map<string, { atMs: number; reason: RevocationReason }>();
    for (const entry of tbs.revokedCertificates ?? []) {
      const about = extensionsOf(entry.crlEntryExtensions ?? []);
      const unknown = about.unknownCritical[0];
      if (unknown !== undefined)
        throw invalid(`An entry of the revocation list has the unknown critical extension ${unknown}.`);
      const code = about.required(OID.reason, CRLReason).reason;
      const reason = (Object.keys(REASONS) as RevocationReason[]).find((key) => REASONS[key] === code);
      if (reason === undefined) throw invalid('An entry of the revocation list gives a reason of another profile.');
      revoked.set(serialOf(entry.userCertificate), { atMs: entry.revocationDate.getTime().getTime(), reason });
    }
    const number = new DataView(new ArrayBuffer(8));
    const digits = integerOf(found.raw(OID.crlNumber));
    for (const [index, byte] of digits.entries()) number.setUint8(8 - digits.length + index, byte);
    return {
      der,
      issuerDer: parts.field(2),
      number: Number(number.getBigUint64(0)),
      thisUpdateMs: tbs.thisUpdate.getTime().getTime(),
      nextUpdateMs: tbs.nextUpdate.getTime().getTime(),
      authorityKeyId: keyIdText(found.optional(OID.authorityKeyId, AuthorityKeyIdentifier)?.keyIdentifier),
      revoked,
      signed: signedOf(outer, parts),
    };
  });
}

function signedOf(outer: Outer, parts: Split): DoubleSigned {
  return {
    falcon: { bytes: outer.tbs, signature: outer.signature },
    ed25519: { bytes: parts.ed25519Bytes, signature: parts.ed25519Signature },
  };
}

/** Values of extensions by identifier. An extension that occurs twice is refused, as RFC 5280 section 4.2 demands. */
function extensionsOf(extensions: Iterable<Extension>) {
  const values = new Map<string, Uint8Array>();
  const unknownCritical: string[] = [];
  const known = new Set<string>(Object.values(OID));
  for (const { extnID, critical, extnValue } of extensions) {
    if (values.has(extnID)) throw invalid(`The extension ${extnID} occurs twice.`);
    values.set(extnID, new Uint8Array(extnValue.buffer));
    if (critical && !known.has(extnID)) unknownCritical.push(extnID);
  }
  const optional = <T>(oid: string, type: new () => T): T | undefined => {
    const value = values.get(oid);
    if (value === undefined) return undefined;
    requireOneValue(value);
    return AsnConvert.parse(value, type);
  };
  return {
    unknownCritical,
    raw: (oid: string) => values.get(oid),
    optional,
    required<T>(oid: string, type: new () => T): T {
      const value = optional(oid, type);
      if (value === undefined) throw invalid(`The required extension ${oid} is missing.`);
      return value;
    },
  };
}

function rolesOf(value: Uint8Array): LeafRole[] {
  const found = requireOneValue(value, 0x30);
  const contents = children(value, found).map((item) =>
    item.tag === 0x06 ? hex(value.subarray(item.start, item.end)) : '',
  );
  return (Object.keys(PURPOSES) as LeafRole[]).filter((role) => contents.includes(PURPOSES[role].content));
}

function keyOf(info: SubjectPublicKeyInfo, algorithm: string, length: number): Uint8Array {
  const key = new Uint8Array(info.subjectPublicKey);
  if (info.algorithm.algorithm !== algorithm || info.algorithm.parameters !== undefined || key.length !== length) {
    throw invalid(`A public key of algorithm ${algorithm} with ${length} bytes was expected.`);
  }
  return key;
}

function keyIdText(value: OctetString | undefined): string | null {
  return value === undefined ? null : hex(new Uint8Array(value.buffer));
}

function serialOf(value: ArrayBuffer): string {
  const bytes = new Uint8Array(value);
  if (bytes.length === 0 || bytes.length > 20 || bytes[0]! >= 0x80 || bytes.every((byte) => byte === 0)) {
    throw invalid('A serial number is positive and has at most 20 bytes.');
  }
  return hex(bytes);
}

function integerOf(value: Uint8Array | undefined): Uint8Array {
  if (value === undefined) throw invalid('The revocation list has no number.');
  const found = requireOneValue(value, 0x02);
  const digits = value.subarray(found.start, found.end);
  if (digits.length === 0 || digits.length > 6 || digits[0]! >= 0x80) {
    throw invalid('The number of a revocation list is positive and has at most 6 bytes.');
  }
  return digits;
}

const SHORT_NAMES: Readonly<Record<string, string>> = { [OID.commonName]: 'CN', [OID.organization]: 'O' };

function nameText(value: Name): string {
  const parts = [...value].flatMap((relative) =>
    [...relative].map((part) => `${SHORT_NAMES[part.type] ?? part.type}=${part.value.toString()}`),
  );
  // Names come from outside and end up on terminals.
  return parts
    .join(', ')
    .replaceAll(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, '\ufffd')
    .slice(0, 256);
}

// --- the few bytes of DER that the codec does not give: exact slices, and strictness of the outer shell

/** Which element names the algorithm, and which tag holds the extensions. */
interface Shape {
  readonly algorithmAt: number;
  readonly extensionsTag: number;
}

const CERTIFICATE_SHAPE: Shape = { algorithmAt: 2, extensionsTag: 0xa3 };
const REVOCATION_LIST_SHAPE: Shape = { algorithmAt: 1, extensionsTag: 0xa0 };

interface Tlv {
  readonly tag: number;
  /** Offsets of the header, of the content, and past it. */
  readonly from: number;
  readonly start: number;
  readonly end: number;
}

interface Outer {
  readonly tbs: Uint8Array;
  readonly signature: Uint8Array;
}

interface Split {
  /** The exact DER of the n-th element of the to-be-signed part. */
  field(index: number): Uint8Array;
  readonly ed25519Bytes: Uint8Array;
  readonly ed25519Signature: Uint8Array;
}

function splitOuter(der: Uint8Array): Outer {
  const [tbs, algorithm, signature, ...more] = children(der, requireOneValue(der, 0x30));
  if (tbs?.tag !== 0x30 || algorithm === undefined || signature?.tag !== 0x03 || more.length > 0) {
    throw invalid('Expected a signed part, an algorithm and a signature.');
  }
  const content = der.subarray(signature.start, signature.end);
  if (
    !equal(der.subarray(algorithm.from, algorithm.end), FALCON_ALGORITHM) ||
    content.length !== 1 + FALCON_SIGNATURE_BYTES ||
    content[0] !== 0
  ) {
    throw invalid(`Expected a signature of ${FALCON_SIGNATURE_BYTES} bytes by the algorithm ${OID.falcon}.`);
  }
  return { tbs: der.subarray(tbs.from, tbs.end), signature: content.subarray(1) };
}

/** Takes the Ed25519 signature out, and rebuilds what it covers: everything but the algorithm field and that last extension. */
function splitTbs(tbs: Uint8Array, shape: Shape): Split {
  const fields = children(tbs, requireOneValue(tbs, 0x30));
  const algorithm = fields[shape.algorithmAt];
  if (algorithm === undefined || !equal(tbs.subarray(algorithm.from, algorithm.end), FALCON_ALGORITHM)) {
    throw invalid('The algorithm inside the signed part differs from the one outside.');
  }
  const last = fields.at(-1);
  if (last?.tag !== shape.extensionsTag) throw invalid('The extensions are missing, or something follows them.');
  const [list, ...more] = children(tbs, last);
  if (list?.tag !== 0x30 || more.length > 0) throw invalid('The extensions are malformed.');
  const extensions = children(tbs, list);
  const alternative = extensions.at(-1);
  const prefix = ALT_SIGNATURE_PREFIX;
  if (
    alternative === undefined ||
    alternative.end - alternative.from !== prefix.length + 64 ||
    !equal(tbs.subarray(alternative.from, alternative.from + prefix.length), prefix)
  ) {
    throw invalid('The last extension is not the Ed25519 signature.');
  }
  const named = extensions.at(-2);
  if (named === undefined || !equal(tbs.subarray(named.from, named.end), ALT_ALGORITHM_EXTENSION)) {
    throw invalid('The algorithm of the second signature is not Ed25519.');
  }
  const kept = tlv(shape.extensionsTag, tlv(0x30, tbs.subarray(list.start, alternative.from)));
  const before = fields.slice(0, -1).filter((field) => field !== algorithm);
  return {
    field: (index) => {
      const field = fields[index];
      if (field === undefined) throw invalid('A field is missing.');
      return tbs.subarray(field.from, field.end);
    },
    ed25519Bytes: tlv(0x30, ...before.map((field) => tbs.subarray(field.from, field.end)), kept),
    ed25519Signature: tbs.subarray(alternative.end - 64, alternative.end),
  };
}

/** SEQUENCE { 2.5.29.74, OCTET STRING { BIT STRING of 64 bytes } } up to the signature, and SEQUENCE { 2.5.29.73, Ed25519 }. */
const ALT_SIGNATURE_PREFIX = fromHex('304a0603551d4a0443034100');
const ALT_ALGORITHM_EXTENSION = fromHex('300e0603551d490407300506032b6570');

function requireOneValue(bytes: Uint8Array, tag?: number): Tlv {
  const found = readTlv(bytes, 0, bytes.length);
  if (found.end !== bytes.length || (tag !== undefined && found.tag !== tag))
    throw invalid('A value has the wrong type or length.');
  return found;
}

function children(bytes: Uint8Array, parent: Tlv): Tlv[] {
  const found: Tlv[] = [];
  for (let at = parent.start; at < parent.end; ) {
    const child = readTlv(bytes, at, parent.end);
    found.push(child);
    at = child.end;
  }
  return found;
}

function readTlv(bytes: Uint8Array, from: number, limit: number): Tlv {
  const tag = bytes[from];
  const first = bytes[from + 1];
  if (from + 2 > limit || tag === undefined || first === undefined || (tag & 0x1f) === 0x1f)
    throw invalid('A value is cut off.');
  let start = from + 2;
  let length = first;
  if (first >= 0x80) {
    const octets = first & 0x7f;
    if (octets === 0 || octets > 3 || start + octets > limit) throw invalid('A length is not in DER.');
    length = bytes.subarray(start, start + octets).reduce((sum, byte) => sum * 256 + byte, 0);
    start += octets;
    if (length < 0x80 || length < 256 ** (octets - 1)) throw invalid('A length is not in its shortest form.');
  }
  if (start + length > limit) throw invalid('A value is longer than what contains it.');
  return { tag, from, start, end: start + length };
}

function tlv(tag: number, ...content: Uint8Array[]): Uint8Array {
  const length = content.reduce((sum, part) => sum + part.length, 0);
  const octets: number[] = [];
  for (let rest = length; rest > 0; rest = Math.floor(rest / 256)) octets.unshift(rest % 256);
  const header = length < 0x80 ? [tag, length] : [tag, 0x80 | octets.length, ...octets];
  return concat(Uint8Array.from(header), ...content);
}

/** Whatever the codec throws on hostile bytes (its own errors, range errors, deep recursion) becomes the coded refusal. */
function orInvalid<T>(what: string, decode: () => T): T {
  try {
    return decode();
  } catch (error) {
    if (error instanceof HyperMeshError) throw error;
    throw new HyperMeshError('certificate-invalid', `The bytes are not a ${what} in DER.`, { cause: error });
  }
}

function invalid(message: string): HyperMeshError {
  return new HyperMeshError('certificate-invalid', message);
}
