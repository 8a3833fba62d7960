/**
 * A text that sorts by UTF-8 bytes as semantic versions sort by precedence (SemVer 2.0.0, clause 11), so that an index finds the newest.
 * Versions that differ only in build metadata give the same text. `version` must be valid.
 */
export function precedenceKey(version: string): string {
  const [, core, preRelease] = /^([^-+]+)(?:-([^+]+))?/.exec(version)!;
  const numbers = core!.split('.').map(sortableNumber).join('.');
  // `~` sorts after `-`: a release after its pre-releases. `!` sorts before all that an identifier may contain.
  return preRelease === undefined
    ? `${numbers}~`
    : `${numbers}-${preRelease.split('.').map(sortableIdentifier).join('')}`;
}

function sortableIdentifier(identifier: string): string {
  return /^\d+$/.test(identifier) ? `0${sortableNumber(identifier)}!` : `1${identifier}!`;
}

function sortableNumber(digits: string): string {
  return `${String(digits.length).padStart(3, '0')}${digits}`;
}
