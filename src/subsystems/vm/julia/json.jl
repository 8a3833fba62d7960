# JSON (RFC 8259) for the worker: strict, bounded, without anything beyond Base.
# Objects become Dict{String,Any}, arrays Vector{Any}, whole numbers Int64 where they fit, other numbers Float64, null nothing.
module HyperMeshJson

Base.Experimental.@optlevel 0

const DEPTH_MAX = 512

struct JsonError <: Exception
    message::String
end
Base.showerror(io::IO, error::JsonError) = print(io, "JSON: ", error.message)

mutable struct Reader
    bytes::Vector{UInt8}
    at::Int
end

fail(message::String) = throw(JsonError(message))
fail(reader::Reader, expected::String) = fail(string("expected ", expected, " at byte ", reader.at - 1))

peek(reader::Reader)::UInt8 = reader.at <= length(reader.bytes) ? reader.bytes[reader.at] : 0x00

function skip!(reader::Reader)
    while peek(reader) in (0x20, 0x09, 0x0a, 0x0d)
        reader.at += 1
    end
end

function expect!(reader::Reader, literal::String)
    for byte in codeunits(literal)
        peek(reader) == byte || fail(reader, string('"', literal, '"'))
        reader.at += 1
    end
end

"One document and nothing behind it."
function read_json(bytes::Vector{UInt8})
    isvalid(String, bytes) || fail("expected UTF-8")
    reader = Reader(bytes, 1)
    value = read_value!(reader, 0)
    skip!(reader)
    reader.at > length(bytes) || fail(reader, "the end")
    return value
end

function read_value!(reader::Reader, depth::Int)
    depth <= DEPTH_MAX || fail("more than $DEPTH_MAX levels")
    skip!(reader)
    byte = peek(reader)
    byte == UInt8('{') && return read_object!(reader, depth)
    byte == UInt8('[') && return read_array!(reader, depth)
    byte == UInt8('"') && return read_string!(reader)
    byte == UInt8('t') && (expect!(reader, "true"); return true)
    byte == UInt8('f') && (expect!(reader, "false"); return false)
    byte == UInt8('n') && (expect!(reader, "null"); return nothing)
    return read_number!(reader)
end

function read_object!(reader::Reader, depth::Int)
    object = Dict{String,Any}()
    reader.at += 1
    skip!(reader)
    peek(reader) == UInt8('}') && (reader.at += 1; return object)
    while true
        skip!(reader)
        peek(reader) == UInt8('"') || fail(reader, "a name")
        name = read_string!(reader)
        haskey(object, name) && fail(string("the name ", repr(name), " comes twice"))
        skip!(reader)
        expect!(reader, ":")
        object[name] = read_value!(reader, depth + 1)
        skip!(reader)
        peek(reader) == UInt8('}') && (reader.at += 1; return object)
        expect!(reader, ",")
    end
end

function read_array!(reader::Reader, depth::Int)
    array = Any[]
    reader.at += 1
    skip!(reader)
    peek(reader) == UInt8(']') && (reader.at += 1; return array)
    while true
        push!(array, read_value!(reader, depth + 1))
        skip!(reader)
        peek(reader) == UInt8(']') && (reader.at += 1; return array)
        expect!(reader, ",")
    end
end

function read_string!(reader::Reader)::String
    reader.at += 1
    from = reader.at
    while !(peek(reader) in (UInt8('"'), UInt8('\\'))) && peek(reader) >= 0x20
        reader.at += 1
    end
    if peek(reader) == UInt8('"')
        reader.at += 1
        return String(reader.bytes[from:reader.at-2])
    end
    text = IOBuffer()
    write(text, view(reader.bytes, from:reader.at-1))
    while true
        byte = peek(reader)
        byte < 0x20 && fail(reader, "a character of a string")
        reader.at += 1
        byte == UInt8('"') && return String(take!(text))
        byte == UInt8('\\') ? print(text, read_escape!(reader)) : write(text, byte)
    end
end

function read_escape!(reader::Reader)::Char
    byte = peek(reader)
    reader.at += 1
    byte == UInt8('"') && return '"'
    byte == UInt8('\\') && return '\\'
    byte == UInt8('/') && return '/'
    byte == UInt8('b') && return '\b'
    byte == UInt8('f') && return '\f'
    byte == UInt8('n') && return '\n'
    byte == UInt8('r') && return '\r'
    byte == UInt8('t') && return '\t'
    byte == UInt8('u') || fail(reader, "an escape")
    code = read_hex!(reader)
    if 0xd800 <= code <= 0xdbff
        expect!(reader, "\\u")
        low = read_hex!(reader)
        0xdc00 <= low <= 0xdfff || fail(reader, "the second half of a surrogate pair")
        return Char(0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00))
    end
    0xdc00 <= code <= 0xdfff && fail(reader, "a character, not half of one,")
    return Char(code)
end

function read_hex!(reader::Reader)::UInt32
    code = UInt32(0)
    for _ in 1:4
        byte = peek(reader)
        digit = UInt8('0') <= byte <= UInt8('9') ? byte - UInt8('0') :
            UInt8('a') <= byte <= UInt8('f') ? byte - UInt8('a') + 0x0a :
            UInt8('A') <= byte <= UInt8('F') ? byte - UInt8('A') + 0x0a : fail(reader, "a hexadecimal digit")
        code = code << 4 + digit
        reader.at += 1
    end
    return code
end

digits!(reader::Reader) = (from = reader.at; while UInt8('0') <= peek(reader) <= UInt8('9'); reader.at += 1; end; reader.at - from)

function read_number!(reader::Reader)
    from = reader.at
    peek(reader) == UInt8('-') && (reader.at += 1)
    leading = peek(reader)
    count = digits!(reader)
    (count == 0 || (count > 1 && leading == UInt8('0'))) && fail(reader, "a value")
    whole = true
    if peek(reader) == UInt8('.')
        whole = false
        reader.at += 1
        digits!(reader) == 0 && fail(reader, "a digit")
    end
    if peek(reader) in (UInt8('e'), UInt8('E'))
        whole = false
        reader.at += 1
        peek(reader) in (UInt8('+'), UInt8('-')) && (reader.at += 1)
        digits!(reader) == 0 && fail(reader, "a digit")
    end
    text = String(reader.bytes[from:reader.at-1])
    if whole
        number = tryparse(Int64, text)
        number === nothing || return number
    end
    number = tryparse(Float64, text)
    (number === nothing || !isfinite(number)) && fail(string("the number ", first(text, 40), " is past the range of a double"))
    return number
end

"The value as one JSON document."
write_json(io::IO, @nospecialize(value)) = write_value(io, value, 0)

function write_value(io::IO, @nospecialize(value), depth::Int)
    depth <= DEPTH_MAX || fail("more than $DEPTH_MAX levels")
    if value === nothing || value === missing
        print(io, "null")
    elseif value isa Bool
        print(io, value ? "true" : "false")
    elseif value isa Integer
        print(io, string(value))
    elseif value isa AbstractFloat
        isfinite(value) || fail("$value has no form in JSON")
        print(io, string(value))
    elseif value isa Real
        write_value(io, Float64(value), depth)
    elseif value isa AbstractString || value isa Symbol || value isa AbstractChar
        write_string(io, String(string(value)))
    elseif value isa AbstractDict
        write_members(io, value, depth)
    elseif value isa NamedTuple
        write_members(io, pairs(value), depth)
    elseif value isa AbstractVector || value isa Tuple || value isa AbstractSet
        print(io, '[')
        separator = ""
        for item in value
            print(io, separator)
            write_value(io, item, depth + 1)
            separator = ","
        end
        print(io, ']')
    elseif value isa AbstractArray
        fail("an array of $(ndims(value)) dimensions has no form in JSON; give a list of its rows or of its columns")
    else
        fail("a $(typeof(value)) has no form in JSON; give a Dict, a NamedTuple, a Vector, a String, a number, a Bool or nothing")
    end
    return nothing
end

function write_members(io::IO, @nospecialize(members), depth::Int)
    print(io, '{')
    separator = ""
    for (name, item) in members
        name isa Union{AbstractString,Symbol,Integer} || fail("a $(typeof(name)) cannot be a name in JSON")
        print(io, separator)
        write_string(io, String(string(name)))
        print(io, ':')
        write_value(io, item, depth + 1)
        separator = ","
    end
    print(io, '}')
end

function write_string(io::IO, text::String)
    isvalid(text) || fail("a text is not UTF-8")
    print(io, '"')
    for byte in codeunits(text)
        if byte == UInt8('"') || byte == UInt8('\\')
            write(io, UInt8('\\'), byte)
        elseif byte < 0x20
            print(io, "\\u00", string(byte; base = 16, pad = 2))
        else
            write(io, byte)
        end
    end
    print(io, '"')
end

end
