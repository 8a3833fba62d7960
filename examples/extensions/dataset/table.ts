import { HyperMeshError, type Json } from 'hypermesh/extension';

export interface Table {
  readonly format: 'csv' | 'json';
  readonly columns: readonly string[];
  readonly rows: readonly (readonly Json[])[];
}

/** A list of objects as JSON, or comma-separated values with a header line (RFC 4180). Errors: `usage`. */
export function readTable(text: string): Table {
  return /^\s*\[/.test(text) ? fromJson(text) : fromCsv(text);
}

function fromJson(text: string): Table {
  let list: unknown;
  try {
    list = JSON.parse(text);
  } catch (error) {
    throw refused((error as Error).message);
  }
  const objects = list as Record<string, Json>[];
  const isTable = objects.every((row) => row !== null && typeof row === 'object' && !Array.isArray(row));
  if (!isTable) throw refused('every element of the list must be an object');
  const columns = [...new Set(objects.flatMap((row) => Object.keys(row)))];
  return { format: 'json', columns, rows: objects.map((row) => columns.map((column) => row[column] ?? null)) };
}

function fromCsv(text: string): Table {
  const rows: string[][] = [[]];
  // A field: in quotes with doubled quotes inside, or plain; then what ends it.
  const field = /(?:"((?:[^"]|"")*)"|([^",\r\n]*))(,|\r?\n|$)/y;
  while (field.lastIndex < text.length) {
    const match = field.exec(text);
    if (match === null) throw refused(`line ${rows.length} has a stray quotation mark`);
    rows.at(-1)!.push(match[1]?.replaceAll('""', '"') ?? match[2]!);
    if (match[3] !== ',' && field.lastIndex < text.length) rows.push([]);
  }
  const [columns, ...body] = rows;
  if (columns === undefined || columns.length === 0) throw refused('there is no header line');
  const uneven = body.findIndex((row) => row.length !== columns.length);
  if (uneven >= 0) {
    throw refused(`line ${uneven + 2} has ${body[uneven]!.length} fields, the header has ${columns.length}`);
  }
  return { format: 'csv', columns, rows: body };
}

function refused(why: string): HyperMeshError {
  return new HyperMeshError('usage', `The content is neither CSV nor a JSON list of objects: ${why}.`);
}
