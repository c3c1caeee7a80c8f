"""The words around a stated answer in the languages of MMLU-ProX: "the answer is (C)", "Jibu sahihi ni C", "正解は C".

The first phrase of every language is that of MMLU-ProX's own prompt (lm_eval.tasks.mmlu_prox.lang_libs); the others
are what answers use beside it. Written without accents where the script is Latin: `choices` reads over them.
"""

from typing import NamedTuple


class Words(NamedTuple):
    """Of one language, separated by |. nouns: "answer". links: between it and the letter ("is"). qualities: beside the
    noun or before the letter ("correct", "option"). denials: after a letter that is not the answer ("wrong", "is not").
    """

    nouns: str
    links: str
    qualities: str
    denials: str


LANGUAGES = {
    "en": Words(
        r"answers?|(?:correct|best|right|final) (?:option|choice|letter|one)|final response"
        r"|(?:I|we)(?:'d| would|'ll)? (?:choose|select|pick|go with)"
        r"|\\(?:boxed|fbox)",
        "is|was|will be|must be|should be|has to be",
        "the|final|correct|right|best|my|most likely|most appropriate"
        "|therefore|thus|option|choice|letter|indeed|clearly"
        "|here|then|, (?:therefore|thus|then|indeed|in fact),|to (?:this|the) question|a|an",
        "is not|isn't|cannot|can't|(?:is |are |seems |looks )?(?:also )?(?:wrong|incorrect|false|ruled out"
        "|eliminated|excluded|unlikely|not)",
    ),
    "ja": Words(
        "答え|正解|正答|回答|解答|正しい選択肢|正しい答え|最終的?な?回答|選択肢",
        "は|が|となり",
        "選択肢|正解|最終|の",
        "は誤り|は間違い|は不正解|ではな|は正しくな|は違",
    ),
    "zh": Words(
        "答案|正确选项|正确的?答案|正確選項|正確的?答案|最终答案|最終答案|故选|应选|因此选|所以选"
        "|故選|應選|选择|選擇|选项|選項",
        "是|为|為|应为|應為|应该是|應該是|就是|选|選",
        "选项|選項|最终|正确的?|应该|的",
        "是错|是錯|错误|錯誤|不正确|不正確|不是|不对|不對|是不",
    ),
    "ko": Words(
        "정답|답변|답|올바른 답|올바른 선택지",
        "은|는|이|가",
        "최종|올바른|선택지|따라서|바로",
        "은 틀|는 틀|가 틀|이 틀|은 오답|는 오답|은 아니|는 아니|이 아니|가 아니|은 잘못|는 잘못",
    ),
    "fr": Words(
        "reponse|bonne option|option correcte|bonne reponse|choix correct",
        "est|c'est|serait|sera|doit etre",
        "la|le|l'|correcte?|bonne|exacte|juste|finale|option|lettre|choix|donc",
        "n'est|est (?:fausse|faux|incorrecte?|erronee?)",
    ),
    "de": Words(
        "antwort|losung|richtige (?:option|wahl)|antwortmoglichkeit",
        "ist|lautet|ware|heisst|heißt|muss",
        "die|der|richtige|korrekte|beste|endgultige|finale|somit|daher|also|option|buchstabe|antwort|sein",
        "ist (?:falsch|nicht|inkorrekt|unwahrscheinlich)|scheidet|kann nicht",
    ),
    "es": Words(
        "respuesta|opcion correcta|alternativa correcta",
        "es|seria|sera|debe ser",
        "la|el|correcta|final|opcion|letra|por tanto",
        "no es|es (?:incorrecta|falsa|erronea)",
    ),
    "pt": Words(
        "resposta|opcao correta|alternativa correta",
        "e|seria|sera|deve ser",
        "a|o|correta|certa|final|opcao|letra|alternativa|portanto",
        "nao e|e (?:incorreta|falsa|errada)|esta (?:incorreta|errada)",
    ),
    "it": Words(
        "risposta|opzione corretta|scelta corretta",
        "e|sarebbe|sara|deve essere",
        "la|l'|corretta|giusta|esatta|finale|opzione|lettera|quindi",
        "non e|e (?:sbagliata|errata|falsa)",
    ),
    "zu": Words(
        "impendulo|izimpendulo",
        "ithi|yilena|ingu|u|ngu|iyi|yi|ngeka",
        "efanele|elungile|eqondile|yokugcina|inketho|ukhetho|uhlamvu",
        "akulungile|ayilungile|alulungile|akuyona|akusiyo",
    ),
    "sw": Words(
        "jibu|majibu",
        "ni|litakuwa|lingekuwa",
        "sahihi|la mwisho|mwisho|chaguo|herufi|la|langu|hivyo",
        "si |sio|siyo|sivyo|sahihi sivyo|si sahihi|ni makosa|ni mbaya",
    ),
    "wo": Words(
        "tontu|tontu bi|tontu li",
        "mooy|moo|moy|la|di",
        "bi|li|gi|bu|dogal|baax|jeex|jub|tanneef|araf|am",
        "du |baaxul|jubul",
    ),
    "yo": Words(
        "idahun",
        "ni|je|naa ni|ni eyi",
        "naa|na|to|ti|o|peye|tona|dara|ikeyin|aayo|asayan|leta",
        "ko |kii|ki i|je aṣiṣe|je asise",
    ),
    "th": Words(
        "คำตอบ|ข้อที่ถูกต้อง|ตัวเลือกที่ถูกต้อง|เฉลย", "คือ|เป็น|ได้แก่", "ที่ถูกต้อง|ที่ถูก|สุดท้าย|ข้อ|ตัวเลือก|ของคำถามนี้|จึง|นี้|ดังนั้น", "ไม่|ผิด"
    ),
    "ar": Words(
        "الإجابة|الاجابة|الجواب|إجابة|الخيار الصحيح|الاختيار الصحيح",
        "هي|هو|تكون",
        "الصحيحة|الصحيح|النهائية|النهائي|الخيار|الحرف|إذن|إذا|هنا",
        "خاطئ|غير|ليس|خطأ",
    ),
    "hi": Words(
        "उत्तर|जवाब|सही विकल्प", "है|होगा|हैं", "सही|अंतिम|विकल्प|इसलिए|का|अतः", "(?:भी )?गलत|(?:भी )?ग़लत|नहीं|सही नहीं"
    ),
    "bn": Words("উত্তর|সঠিক বিকল্প|জবাব", "হল|হলো|হবে|হচ্ছে|টি হল|টি", "সঠিক|চূড়ান্ত|বিকল্প|অতএব|তাই", "ভুল|নয়|সঠিক নয়"),
    "mr": Words(
        "उत्तर|योग्य पर्याय|बरोबर पर्याय", "आहे|असेल|होय", "योग्य|बरोबर|अंतिम|अचूक|पर्याय|म्हणून|हे", "(?:हे )?चुकीच|चूक|नाही|अयोग्य"
    ),
    "ne": Words("उत्तर|सही विकल्प|जवाफ", "हो|हुन्छ|हुनेछ|छ", "सही|अन्तिम|विकल्प|ठीक|त्यसैले", "गलत|होइन|हुँदैन"),
    "af": Words(
        "antwoord|regte opsie|korrekte opsie",
        "is|sal wees|moet wees",
        "die|korrekte|regte|finale|opsie|letter|dus",
        "is (?:verkeerd|nie|foutief|onjuis)",
    ),
    "te": Words(
        "సమాధానం|జవాబు|సరైన ఎంపిక", "అవుతుంది|అనేది|ఏమిటంటే", "సరైన|సరియైన|తుది|చివరి|ఎంపిక|కాబట్టి", "(?:కూడా )?తప్పు|కాదు|సరైనది కాదు|సరికాదు"
    ),
    "ur": Words("جواب|درست انتخاب|صحیح آپشن", "ہے|ہوگا|ہو گا", "درست|صحیح|حتمی|آپشن|انتخاب|لہذا|کا", "غلط|نہیں"),
    "ru": Words(
        "ответ|правильный вариант|верный вариант",
        "это|будет|является",
        "правильныи|верныи|итоговыи|окончательныи|вариант|буква|правильный|верный|окончательный|итоговый",
        "не |неверн|неправильн|ошибоч|ложн",
    ),
    "id": Words(
        "jawaban(?:nya)?|pilihan yang (?:benar|tepat)",
        "adalah|ialah|yaitu",
        "yang|benar|tepat|akhir|paling|pilihan|opsi|huruf|jadi",
        "salah|tidak|bukan|adalah salah|keliru",
    ),
    "vi": Words(
        "cau tra loi|đap an|dap an|lua chon đung|phuong an đung",
        "la|se la|phai la",
        "đung|dung|chinh xac|cuoi cung|nhat|phuong an|lua chon|chu cai|vay",
        "sai|khong|la sai",
    ),
    "cs": Words(
        "odpoved|spravna moznost|spravna volba",
        "je|zni|bude",
        "spravna|spravnou|konecna|moznost|volba|pismeno|tedy",
        "neni|je (?:spatne|nespravn|chybn)",
    ),
    "hu": Words(
        "valasz|helyes opcio|helyes lehetoseg",
        "az?|a kovetkezo|lenne",
        "helyes|vegso|vegleges|jo|opcio|lehetoseg|betu|tehat",
        "nem |helytelen|hibas|teves",
    ),
    "sr": Words(
        "odgovor|tacna opcija|одговор|тачна опција|tacan odgovor",
        "je|bi bio|је|glasi",
        "tacan|tacna|ispravan|konacan|opcija|slovo|тачан|коначан|опција|dakle",
        "nije|je (?:netacn|pogresn|neisprav)|није",
    ),
    "uk": Words(
        "відповідь|правильний варіант",
        "це|є|буде",
        "правильна|вірна|остаточна|варіант|літера|правильний|отже",
        "не |неправильн|хибн|невірн|помилков",
    ),
}
